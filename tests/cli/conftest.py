"""Two tiny models and an adapter, as the server's tests have them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from llm.generation.loaded_models import Shelf
from tests.server.conftest import model_directories


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return model_directories(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def shelf(models: dict[str, Path]) -> Shelf:
    return Shelf(models, torch.device("cpu"), torch.float32)

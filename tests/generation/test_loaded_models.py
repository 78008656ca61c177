"""Models by name: adapters share the base's memory, and what is not there is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from llm.errors import UserError
from llm.generation.loaded_models import Shelf
from llm.model.hf_files import stop_ids
from tests.server.conftest import model_directories


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    directories = model_directories(tmp_path_factory.mktemp("models"))
    return Shelf(directories, torch.device("cpu"), torch.float32)


def test_adapters_share_the_memory_of_the_base_and_leave_it_as_it_is(shelf: Shelf) -> None:
    base, skill = shelf.get("base").model, shelf.get("skill").model
    own = {p.data_ptr() for p in skill.parameters()} - {p.data_ptr() for p in base.parameters()}
    assert len(own) == 2 * 2 * base.config.num_hidden_layers  # A and B of two matrices a layer
    ids = torch.tensor([[5, 6, 7]])
    fresh = Shelf(shelf.directories, torch.device("cpu"), torch.float32).get("base").model
    assert torch.equal(base(ids), fresh(ids))
    assert not torch.allclose(base(ids), skill(ids))


def test_a_model_that_is_not_there_is_refused_by_name(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="no model 'bass': expected base, finetuned, skill, or a directory"
    ):
        shelf.get("bass")
    alone = Shelf({"finetuned": shelf.directories["finetuned"]}, torch.device("cpu"), torch.float32)
    with pytest.raises(UserError, match="is an adapter, but there is no model called `base`"):
        alone.get(str(shelf.directories["skill"]))


def test_the_stop_tokens_of_a_generation_config_are_heeded(shelf: Shelf, tmp_path: Path) -> None:
    tokenizer = shelf.get("base").tokenizer
    for written, expected in ((None, set()), (7, {7}), ([7, 8], {7, 8})):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": written}))
        assert stop_ids(tmp_path, tokenizer) == expected | {tokenizer.eos_id}

"""What all tests share: real data where it is at hand, and no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1", NO_COLOR="1"
)

import dvc  # noqa: F401  its log goes to the sys.stdout of its first import, which may not be one test's own
import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real data sets: `LLM_TEST_DATA`, or ../shared/data beside the checkout."""
    path = Path(os.environ.get("LLM_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip(f"no real data at {path}; point LLM_TEST_DATA at a folder of data sets")
    return path


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training state and MLflow's store of a test go to a folder of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("root")))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_EXP_NAME", raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With pytest-xdist a file's tests go to one process, and those of files that share what takes long to make."""
    for item in items:
        if not any(item.iter_markers("xdist_group")):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))

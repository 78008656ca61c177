"""What all tests share: real data where it is at hand, and no network."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="1",
    NO_COLOR="1",
)

import dvc  # noqa: F401  its log goes to the sys.stdout of its first import, which may not be one test's own
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.train.workers import Workers

ROOT = Path(__file__).parents[1]

# No example fails, and none is refused, because the machine is slow. (A fixture of a function that
# many examples share is meant so.)
UNCHECKED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("tests", deadline=None, suppress_health_check=UNCHECKED)
settings.load_profile("tests")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell that runs the tests in the background lets them ignore Ctrl-C, and so would every
    # process that a test starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def workers() -> Iterator[Workers]:
    """Start four processes that train together on request; starting them takes longer than most jobs."""
    from tests.train.workers import Workers

    started = Workers()
    yield started
    started.close()


# Files whose tests share what takes long to make.
TOGETHER = {
    "tests/pipeline/test_sharing.py": "tests/pipeline/test_dag.py",
    "tests/pipeline/test_checkpoint.py": "tests/pipeline/test_kill.py",
    "tests/pipeline/test_disk_full.py": "tests/pipeline/test_kill.py",
    "tests/pipeline/test_kill_dvc.py": "tests/pipeline/test_kill.py",
    "tests/train/test_fsdp.py": "tests/parallel/test_processes.py",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With pytest-xdist the tests of a file, or of several files that belong together, go to one
    process.

    `--dist loadgroup` would say it in the files, but pytest 9.2 does not let it rename tests, so it
    does nothing."""
    from xdist.scheduler import LoadScopeScheduling

    class Together(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return TOGETHER.get(file, file)

    return Together(config, log)

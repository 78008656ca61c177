"""Runs on one machine share its GPUs and cores, whatever ends them. The GPUs are pretended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm.errors import UserError
from llm.parallel import gpu_lease

ROOT = Path(__file__).parents[2]
# Takes a lease as a stage does, says what it got, and holds it until its input is closed.
RUN = """
import os, sys
from llm.parallel import gpu_lease as lease
lease.cuda_devices = lambda: int(sys.argv[1])
lease.POLL = 0.05
os.cpu_count = lambda: 8
os.sched_getaffinity = lambda _: set(range(8))
lease.take()
print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), flush=True)
sys.stdin.read()
"""


class Runs:
    """Processes that hold leases."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started = folder, list[subprocess.Popen]()

    def start(self, gpus: int, **env: str) -> subprocess.Popen:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("LLM_", "OMP_", "CUDA_", "DVC_", "WORLD_"))
        }
        kept |= {"TMPDIR": str(self.folder), "PYTHONPATH": str(ROOT), **env}
        run = subprocess.Popen(
            [sys.executable, "-c", RUN, str(gpus)],
            cwd=self.folder,
            env=kept,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(run)
        return run

    def got(self, run: subprocess.Popen) -> str:
        assert run.stdout is not None
        return run.stdout.readline().strip()


@pytest.fixture
def runs(tmp_path: Path) -> object:
    found = Runs(tmp_path)
    yield found
    for run in found.started:
        run.kill()
        run.communicate()


def test_queued_runs_take_a_gpu_each_and_the_next_gets_that_of_one_that_was_killed(
    runs: Runs,
) -> None:
    elsewhere = {"DVC_ROOT": "/somewhere"}
    first, second = (runs.start(2, **elsewhere) for _ in range(2))
    of_first = runs.got(first)
    assert {of_first, runs.got(second)} == {"0 None", "1 None"}
    third = runs.start(2, **elsewhere)
    assert runs.got(third) == "waiting for 1 of the GPUs 0, 1: other runs have them"
    first.send_signal(signal.SIGKILL)
    assert runs.got(third) == of_first


def test_a_run_in_the_workspace_takes_all_that_are_free_of_those_that_it_may_use(
    runs: Runs,
) -> None:
    queued = runs.start(3, CUDA_VISIBLE_DEVICES="4,GPU-5a,6", DVC_ROOT="/somewhere")
    assert runs.got(queued) == "4 None"
    assert (
        runs.got(runs.start(3, CUDA_VISIBLE_DEVICES="4,GPU-5a,6", DVC_ROOT=str(runs.folder)))
        == "GPU-5a,6 None"
    )


def test_who_needs_several_waits_until_there_are_so_many_and_holds_none_meanwhile(
    runs: Runs,
) -> None:
    one = runs.start(3, DVC_ROOT="/somewhere")
    assert runs.got(one) == "0 None"
    three = runs.start(3, LLM_PROCESSES="3")
    assert runs.got(three).startswith("waiting for 3 of the GPUs")
    assert runs.got(runs.start(3, DVC_ROOT="/somewhere")) == "1 None"
    for run in (runs.started[0], runs.started[2]):
        run.kill()
    assert runs.got(three) == "0,1,2 None"


def test_queued_runs_on_the_cpu_share_the_cores_and_the_dead_do_not_count(runs: Runs) -> None:
    queued = {"DVC_ROOT": "/somewhere"}
    first = runs.start(0, **queued)
    assert runs.got(first) == "None 8"
    second = runs.start(0, **queued)
    assert runs.got(second) == "None 4"
    assert runs.got(runs.start(2, LLM_DEVICE="cpu", **queued)) == "None 2"
    first.kill()
    first.wait()
    second.kill()
    second.wait()
    assert runs.got(runs.start(0, **queued)) == "None 4"
    assert runs.got(runs.start(0, OMP_NUM_THREADS="3", **queued)) == "None 3"


def test_a_run_in_the_workspace_has_its_threads_from_the_machine_whatever_else_runs(
    runs: Runs,
) -> None:
    assert runs.got(runs.start(0, DVC_ROOT="/somewhere")) == "None 8"
    assert runs.got(runs.start(0, DVC_ROOT=str(runs.folder))) == "None None"


def test_a_gpu_that_is_gone_is_named_and_the_run_does_not_go_to_the_cpu_unasked(runs: Runs) -> None:
    some = runs.start(2, CUDA_VISIBLE_DEVICES="0,GPU-5a,GPU-77,3")
    assert runs.got(some) == (
        "warning: CUDA_VISIBLE_DEVICES=0,GPU-5a,GPU-77,3: CUDA does not find GPU GPU-77, and leaves it out with all "
        "after it; 2 of 4 are used"
    )
    assert runs.got(some) == "0,GPU-5a None"
    none = runs.start(0, CUDA_VISIBLE_DEVICES="7")
    assert runs.got(none) == ""
    assert none.wait(60) == 1
    assert (
        "CUDA_VISIBLE_DEVICES=7: CUDA does not find GPU 7. `nvidia-smi -L` lists"
        in none.stderr.read()
    )
    for chosen in (
        {"CUDA_VISIBLE_DEVICES": "7", "LLM_DEVICE": "cpu"},
        {"CUDA_VISIBLE_DEVICES": ""},
    ):
        assert runs.got(runs.start(0, **chosen)).endswith("None")


def test_a_named_device_is_leased_and_keeps_its_number(runs: Runs) -> None:
    assert runs.got(runs.start(2, LLM_DEVICE="cuda:1")) == "None None"
    assert runs.got(runs.start(2)) == "0 None"


def test_who_was_started_by_a_holder_or_by_torchrun_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lease, "folder", lambda: tmp_path / "leases")
    for name in (gpu_lease.TAKEN, "WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
        gpu_lease.take()
        monkeypatch.delenv(name)
    assert not (tmp_path / "leases").exists()


def test_a_folder_of_another_user_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_lease, "folder", lambda: tmp_path)
    own = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: own + 1)
    with pytest.raises(UserError, match="belongs to another user"):
        gpu_lease.lease_cores()
    assert list(tmp_path.iterdir()) == []

"""Two DVCs in one repository: `dvc exp run` waits for a `dvc repro`, and loses nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llm.runtime import dvc_lock
from llm.tracking import status
from tests.pipeline.workspace import ROOT, run

SLOW = """
import os, time
from llm.runtime.stage import run_stage
from llm.runtime.timing import stage_timing
def main():
    with stage_timing("slow"):
        os.mkdir("out")
        for i in range(int(open("params.yaml").read().split()[1]) * 10):
            open(f"out/{i}", "w").close()
            time.sleep(0.1)
run_stage(main)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "params.yaml").write_text("tenths: 6\n")
    (tmp_path / "dvc.yaml").write_text(
        "stages: {slow: {cmd: python slow.py, params: [tenths], outs: [out]}}"
    )
    (tmp_path / ".gitignore").write_text("/.state/\n/metrics/\n")
    run(tmp_path, "git", "init", "-q")
    run(tmp_path, "dvc", "init", "-q")
    run(tmp_path, "dvc", "config", "core.autostage", "true")
    run(tmp_path, "git", "add", "-A")
    run(tmp_path, "git", "commit", "-qm", "start")
    return tmp_path


def test_an_experiment_in_the_workspace_waits_for_a_repro_and_removes_nothing(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = ThreadPoolExecutor(1)
    # DVC waits three seconds for its own lock, which a command that starts beside it may hold
    # longer on a busy machine.
    first = pool.submit(
        run, repository, "dvc", "--wait-for-lock", "repro", fresh=True, PYTHONPATH=str(ROOT)
    )
    until = time.monotonic() + 240
    while not (repository / "out" / "3").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    monkeypatch.setenv("DVC_ROOT", str(repository))
    assert [(item.experiment, item.stage) for item in status.read()] == [("workspace", "slow")]
    second = run(
        repository,
        "dvc",
        "--wait-for-lock",
        "exp",
        "run",
        "-n",
        "other",
        "-S",
        "tenths=1",
        fresh=True,
        PYTHONPATH=str(ROOT),
    )
    assert "Running stage 'slow'" in first.result(timeout=240).stdout  # and it succeeded
    assert "Ran experiment(s): other" in second.stdout
    assert (
        len(list((repository / "out").iterdir())) == 10
    )  # the experiment's, applied to the workspace
    again = run(
        repository, "dvc", "exp", "run", "-n", "other", "-S", "tenths=2", check=False, fresh=True
    )
    assert "Experiment conflicts with existing experiment 'other'" in again.stderr


def test_a_second_repro_is_refused_by_dvc_with_the_process_named_and_disturbs_nothing(
    repository: Path,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(
            run, repository, "dvc", "--wait-for-lock", "repro", fresh=True, PYTHONPATH=str(ROOT)
        )
        until = time.monotonic() + 240
        while not (repository / "out" / "3").exists():
            assert time.monotonic() < until
            time.sleep(0.05)
        second = run(
            repository,
            "dvc",
            "--wait-for-lock",
            "repro",
            check=False,
            fresh=True,
            PYTHONPATH=str(ROOT),
        )
        assert second.returncode != 0
        assert "is busy, it is being blocked by" in second.stderr  # as docs/RESUME.md says
        assert "(PID " in second.stderr
        assert "Running stage 'slow'" in first.result(timeout=240).stdout
    assert len(list((repository / "out").iterdir())) == 60
    again = run(repository, "dvc", "repro", fresh=True, PYTHONPATH=str(ROOT))
    assert "up to date" in again.stdout


def test_the_lock_is_taken_in_the_main_workspace_alone_and_never_from_a_living_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".dvc").mkdir()
    locks = tmp_path / ".dvc" / "tmp" / "exps" / "rwlock"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "elsewhere"))  # a temporary run
    dvc_lock.hold(os.getpid())
    assert not locks.exists()
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    dvc_lock.hold(os.getpid())
    dvc_lock.hold(1)
    assert json.loads(locks.read_text())["write"][dvc_lock.REFERENCES]["pid"] == os.getpid()
    dvc_lock.release()
    assert json.loads(locks.read_text())["write"] == {}
    dead = subprocess.Popen(["true"])  # not waited for: a zombie is as dead
    while status.psutil.Process(dead.pid).status() != status.psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    locks.write_text(json.dumps({"write": {dvc_lock.REFERENCES: {"pid": dead.pid, "cmd": "dvc"}}}))
    dvc_lock.hold(os.getpid())
    assert json.loads(locks.read_text())["write"][dvc_lock.REFERENCES]["pid"] == os.getpid()
    dvc_lock.release(dead.pid)
    assert dvc_lock.REFERENCES in json.loads(locks.read_text())["write"]
    dvc_lock.release(os.getpid())
    assert json.loads(locks.read_text())["write"] == {}
    dead.wait()


def test_dvc_still_asks_for_the_lock_that_is_held() -> None:
    from dvc.repo.experiments.refs import EXEC_NAMESPACE

    assert EXEC_NAMESPACE == dvc_lock.REFERENCES

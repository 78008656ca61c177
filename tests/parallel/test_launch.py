"""Processes that a stage starts end with it, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.conftest import ROOT

WORK = """
import os, time
from pathlib import Path
from llm.parallel.launch import on_all_devices
def main():
    Path(f"worker-{os.environ['RANK']}").write_text(str(os.getpid()))
    time.sleep(600)
if __name__ == "__main__":
    on_all_devices(main, "work")()
"""


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_processes_end_when_the_kernel_kills_the_one_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "work.py").write_text(WORK)
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("LLM_", "DVC_", "RANK", "WORLD"))
    }
    environment = kept | {"LLM_PROCESSES": "2", "LLM_DEVICE": "cpu", "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen([sys.executable, "-m", "work"], cwd=tmp_path, env=environment)
    until = time.monotonic() + 240
    while len(told := [path.read_text() for path in tmp_path.glob("worker-*")]) < 2 or not all(
        told
    ):
        assert time.monotonic() < until
        time.sleep(0.1)
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    until = time.monotonic() + 60
    while any(lives(int(pid)) for pid in told) and time.monotonic() < until:
        time.sleep(0.1)
    left = [int(pid) for pid in told if lives(int(pid))]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left

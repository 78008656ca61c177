"""No stage works on for a DVC that is dead, and no process of several for a launcher that is."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

from llm.runtime import dvc_lock

VARIABLE = "DVC_STAGE"  # DVC sets it for the commands that it runs
SECONDS = 0.1  # between two looks


def running_dvc() -> psutil.Process | None:
    """The DVC that runs this stage; None where none does.

    The parent alone will not do: between the two may be a shell (dash does not replace itself by
        its command), or
    torchrun. DVC is the nearest ancestor that was not itself started for a stage.
    """
    if VARIABLE not in os.environ:
        return None

    def started_for_a_stage(process: psutil.Process) -> bool:
        try:
            return VARIABLE in process.environ()
        except psutil.Error:  # another user's, or it ended
            return False

    return next((p for p in psutil.Process().parents() if not started_for_a_stage(p)), None)


def end_with_dvc(dvc: psutil.Process) -> None:
    """Send this process SIGTERM as soon as the DVC that runs it ends; its lock on the workspace is
    given back.
    """
    end_with(dvc, lambda: dvc_lock.release(dvc.pid))


def end_with(other: psutil.Process, first: Callable[[], None] = lambda: None) -> None:
    """Send this process SIGTERM as soon as another one ends; do `first` before."""

    def watch() -> None:
        # Not other.wait(), which goes on waiting until somebody collects the zombie; in a container
        # nobody may.
        while _lives(other):
            time.sleep(SECONDS)
        first()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name=f"end-with-{other.pid}", daemon=True).start()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False

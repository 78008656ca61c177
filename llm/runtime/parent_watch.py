"""Stop a stage when the `dvc` or `torchrun` that started it dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psutil

from llm.runtime import dvc_lock

VARIABLE = "DVC_STAGE"  # DVC sets it for the commands that it runs
SECONDS = 0.1  # between two checks


def running_dvc() -> psutil.Process | None:
    """Return the DVC that runs this stage; None if there is none.

    DVC need not be the parent: a shell (dash stays beside its command) or torchrun may be between
    the two. It is the nearest ancestor that was not itself started for a stage.
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
    """Send this process SIGTERM when the DVC that runs it ends, and release DVC's lock."""
    end_with(dvc, lambda: dvc_lock.release(dvc.pid))


def end_with(other: psutil.Process, first: Callable[[], None] = lambda: None) -> None:
    """Send this process SIGTERM when another one ends, after a call of `first`."""

    def watch() -> None:
        # other.wait() would wait until the zombie is collected, which may never happen in a
        # container.
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

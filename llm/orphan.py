"""No stage works on for a DVC that is dead."""

from __future__ import annotations

import os
import signal
import threading
import time

import psutil

from llm import workspace

VARIABLE = "DVC_STAGE"  # DVC sets it for the commands that it runs
SECONDS = 0.1  # between two looks


def running_dvc() -> psutil.Process | None:
    """The DVC that runs this stage; None where none does.

    The parent alone will not do: between the two may be a shell (dash does not replace itself by its command), or
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
    """Send this process SIGTERM as soon as the DVC that runs it ends."""

    def watch(dvc: psutil.Process) -> None:
        # Not dvc.wait(), which goes on waiting until somebody collects the zombie; in a container nobody may.
        while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
            time.sleep(SECONDS)
        workspace.release(dvc.pid)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, args=(dvc,), name="end-with-dvc", daemon=True).start()

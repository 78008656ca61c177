"""The frame of every stage and command: clear errors, safe streams, an end with its DVC."""

from __future__ import annotations

import atexit
import gc
import sys
import time
from collections.abc import Callable
from typing import NoReturn

from llm.errors import NO_SPACE, WRONG_PLACE, UserError, no_space
from llm.runtime import dvc_lock, env, terminal
from llm.runtime.parent_watch import end_with_dvc, running_dvc

# Seconds that other processes wait: the main process may have the same error, and then ends all.
SILENCE = 3.0


def run_stage(main: Callable[[], None], heedless: bool = True) -> None:
    """Run `main`; on an error that the user can fix, print one clear message and exit with code 1.

    The process ends by SIGTERM when the DVC that runs it ends. Until then it keeps other DVCs out
    of its workspace.

    Args:
        main: the stage or command.
        heedless: ignore that nobody reads what is printed: the result of a stage is its files.
    """
    terminal.prepare(heedless)
    # The default would search a million objects of torch and MLflow for garbage while they are
    # imported, and again at exit: 2.3 s of the 7 s of a tiny stage (docs/LOG.md).
    gc.set_threshold(100_000, 10, 10)
    atexit.register(gc.freeze)
    dvc = running_dvc()
    if dvc is not None:
        end_with_dvc(dvc)
        dvc_lock.hold(dvc.pid)
    try:
        main()
    except UserError as error:
        _end(error)
    except OSError as error:
        if error.errno in NO_SPACE:
            _end(no_space(error.filename, error))
        if error.errno in WRONG_PLACE and error.filename is not None:
            place = f"{error.filename}: {error.strerror}"
            _end(
                UserError(
                    f"{place}. Name another place, or give this user the right to it, and run it again."
                )
            )
        raise


def _end(error: UserError) -> NoReturn:
    if env.rank() != 0:
        time.sleep(SILENCE)
    sys.exit(f"\nerror: {error}")

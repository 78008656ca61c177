"""What every stage and command runs inside: clear errors, safe streams, an end with the DVC that
started it.
"""

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

# seconds in which the first of several processes, if it has the same to say, says it and all are
# ended
SILENCE = 3.0


def run_stage(main: Callable[[], None], heedless: bool = True) -> None:
    """Run a stage's `main`; end with exit code 1 and one clear message where the user can mend the
    cause.

    It ends as well, by SIGTERM, when the DVC that runs it does, and keeps others from its workspace
    until then.

    Args:
        heedless: go on where nobody reads what is printed, as a stage does; its result is its
            files.
    """
    terminal.prepare(heedless)
    # Else Python looks for garbage among a million objects of torch and MLflow again and again
    # while they are imported,
    # and once more when it ends: 2.3 s of a tiny stage's 7 (docs/LOG.md).
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

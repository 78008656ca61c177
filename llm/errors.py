"""Errors that a user can act on, and how a stage shows them."""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from llm.addresses import without_credentials
from llm.runtime import dvc_lock, terminal
from llm.runtime.parent_watch import end_with_dvc, running_dvc

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's quota, the limit of `ulimit -f`
# The place is wrong or not ours: a file where a folder should be, somebody else's folder, a disk that is only read.
WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)

SILENCE = 3.0  # seconds in which the first of several processes, if it has the same to say, says it and all are ended


class UserError(Exception):
    """A mistake in the input, the params or the machine's set-up.

    The message names the place, what was expected and what to do; it is shown without a traceback, and without the
    credentials of addresses, which errors of other packages quote.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


def no_space(path: str | Path | None, error: OSError) -> UserError:
    """What to say where `path` (if it is known) did not fit on the disk."""
    return UserError(
        f"{path or 'an output'} could not be written ({error.strerror}). Free some space and rerun `dvc repro`: a "
        "stage that trains goes on from its last checkpoint. `python -m llm state --prune` deletes old checkpoints, "
        "`dvc gc --all-commits --all-experiments` results that no commit and no experiment names."
    )


@functools.cache
def say_once(message: str) -> None:
    """Print a message the first time that it comes up, in the first of several processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {message}", file=sys.stderr, flush=True)


def run_stage(main: Callable[[], None], heedless: bool = True) -> None:
    """Run a stage's `main`; end with exit code 1 and one clear message where the user can mend the cause.

    It ends as well, by SIGTERM, when the DVC that runs it does, and keeps others from its workspace until then.

    Args:
        heedless: go on where nobody reads what is printed, as a stage does; its result is its files.
    """
    terminal.prepare(heedless)
    # Else Python looks for garbage among a million objects of torch and MLflow again and again while they are imported,
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
            _end(UserError(f"{place}. Name another place, or give this user the right to it, and run it again."))
        raise


def _end(error: UserError) -> NoReturn:
    if os.environ.get("RANK", "0") != "0":
        time.sleep(SILENCE)
    sys.exit(f"\nerror: {error}")

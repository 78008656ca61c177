"""Errors that a user can act on. Imports nothing of this project."""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path

from llm.addresses import without_credentials

NO_SPACE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # the disk, the user's quota, the limit of `ulimit -f`
# The place is wrong or not ours: a file where a folder should be, somebody else's folder, a disk
# that is only read.
WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """A mistake in the input, the params or the machine's set-up.

    The message names the place, what was expected and what to do; it is shown without a traceback,
    and without the credentials of addresses, which errors of other packages quote.
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

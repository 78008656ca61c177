"""Errors that a user can act on. Imports nothing of this project."""

from __future__ import annotations

import errno
import functools
import os
import sys
from pathlib import Path

from llm.addresses import without_credentials

# A full disk, the user's quota, the limit of `ulimit -f`.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# A path that cannot be written: a file in place of a folder, another user's, a read-only disk.
WRONG_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


class UserError(Exception):
    """A mistake in the input, the params or the machine's set-up.

    The message says where, what was expected and what to do. It is shown without a traceback, and
    without credentials: errors of other packages quote addresses that contain them.
    """

    def __init__(self, message: str) -> None:
        super().__init__(without_credentials(message))


def no_space(path: str | Path | None, error: OSError) -> UserError:
    """Return the error for a file, if it is known, that did not fit on the disk."""
    return UserError(
        f"{path or 'an output'} could not be written ({error.strerror}). Free some space and rerun `dvc repro`: a "
        "stage that trains resumes from its last checkpoint. `python -m llm state --prune` deletes old checkpoints, "
        "`dvc gc --all-commits --all-experiments` results that no commit and no experiment names."
    )


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type's name if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@functools.cache
def say_once(message: str) -> None:
    """Print a message once, in the main process only."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {message}", file=sys.stderr, flush=True)

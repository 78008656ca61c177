"""Errors that a user can act on, and how a stage shows them."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the input, the params or the machine's set-up.

    The message names the place, what was expected and what to do; it is shown without a traceback.
    """


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's `main`; end with exit code 1 and one clear message where the user can mend the cause."""
    try:
        main()
    except UserError as error:
        sys.exit(f"\nerror: {error}")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            place = f" while writing {error.filename}" if error.filename else ""
            sys.exit(f"\nerror: the disk is full{place}. Free some space and rerun: what was computed is kept.")
        raise

"""Numbers that a user gives in environment variables."""

from __future__ import annotations

import math
import os

from llm.errors import UserError


def environment_number(variable: str, default: float, meaning: str, least: float = 0.0) -> float:
    """The number in `variable`, or `default` where it is empty or not set.

    Args:
        meaning: what it counts, for the message, e.g. "seconds between checkpoints".
        least: the smallest one that makes sense.

    Raises:
        UserError: it is not a finite number of at least `least`.
    """
    given = os.environ.get(variable)
    if not given:
        return default
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise UserError(
            f"{variable}={given!r}: expected {meaning}, {least:g} or more, such as {default:g}."
        )
    return value

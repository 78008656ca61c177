"""Whether a disk can hold what is about to be written."""

from __future__ import annotations

import shutil
from pathlib import Path

from llm.errors import UserError


def refuse_what_cannot_fit(what: str, needed: float, place: Path, remedy: str) -> None:
    """
    Args:
        what: will be written, as the message's subject, in the plural.
        needed: bytes.
        place: a directory, or one that will be made.
        remedy: beside freeing some room.

    Raises:
        UserError: the disk has less room.
    """
    there = next(path for path in (place, *place.absolute().parents) if path.exists())
    if needed > (free := shutil.disk_usage(there).free):
        raise UserError(
            f"{what} will take about {needed / 1e9:.2f} GB, and {there.absolute()} has {free / 1e9:.2f} GB free. Free "
            f"some (`python -m llm state --prune`, `dvc gc --all-commits --all-experiments`), or {remedy}."
        )

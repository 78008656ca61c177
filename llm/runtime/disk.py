"""Free disk space, checked before something large is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from llm.errors import UserError


def refuse_what_cannot_fit(what: str, needed: float, directory: Path, remedy: str) -> None:
    """Check that a disk has room for what will be written.

    Args:
        what: the things to be written, in the plural, as the message's subject.
        needed: their size in bytes.
        directory: where they go; it need not exist yet.
        remedy: what to do other than to free some space.

    Raises:
        UserError: the disk has less room.
    """
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if needed > (free := shutil.disk_usage(existing).free):
        raise UserError(
            f"{what} will take about {needed / 1e9:.2f} GB, and {existing.absolute()} has "
            f"{free / 1e9:.2f} GB free. Free some (`python -m llm state --prune`, "
            f"`dvc gc --all-commits --all-experiments`), or {remedy}."
        )

"""`export.json`: what an export is of and the files that it wrote, so that the next one replaces
nothing else.
"""

from __future__ import annotations

from glob import escape
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.runtime.io import other_files, read_json, sha256, write_json

MARKER = "export.json"


def write_marker(folder: Path, made: dict[str, Any]) -> None:
    """Write the marker beside the files of an export. `made`: what it is of, as JSON values by
    name.
    """
    files = {path.as_posix(): sha256(folder / path) for path in other_files(folder, (MARKER,))}
    write_json(folder / MARKER, {"made": made, "files": files})


def replaceable(out: Path, made: dict[str, Any]) -> list[str]:
    """Patterns of the files in `out` that an export of the same wrote, and that nobody changed
    since.

    Raises:
        UserError: `out` holds anything else, which would be lost.
    """
    other = "Name another directory with --out, or move this one away."
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file. {other}")
    there = other_files(out, (MARKER,))
    if not (out / MARKER).is_file():
        if there:
            raise UserError(
                f"{out} holds {there[0].as_posix()} and no {MARKER}: export did not write it, so it does not replace "
                f"it. {other}"
            )
        return []
    known = read_json(out / MARKER)
    if (
        not isinstance(known, dict)
        or not isinstance(known.get("files"), dict)
        or "made" not in known
    ):
        raise UserError(f"{out / MARKER} is not what export writes. {other}")
    for path in there:
        if known["files"].get(path.as_posix()) != sha256(out / path):
            raise UserError(
                f"{out / path} was added or changed after the export and would be lost. {other}"
            )
    if known["made"] != made:
        before, now = (
            ", ".join(f"{key} {value}" for key, value in each.items())
            for each in (known["made"], made)
        )
        raise UserError(f"{out} holds another export ({before}; this one is {now}). {other}")
    return [MARKER, *map(escape, known["files"])]

"""Splits by module, ids, and the removal of text shared by modules, for the documentation tasks."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from llm.sources.docs.dedup import near_duplicates
from llm.text.hashing import is_held_out, text_hash

Row = dict[str, Any]
LONG_LINE = 60  # characters from which a line must not occur in two modules
NEAR = 0.6  # estimated Jaccard similarity from which texts of two modules count as the same
TEST_SHARE, VALIDATION_SHARE = 0.08, 0.03  # of the modules


def split_of(module: str) -> str:
    """Return the split of a module.

    It is the same in all tasks. Pretraining leaves out the test modules (the lowest hashes) and
    holds out the validation modules (the highest, as `llm.text.hashing.is_held_out`).
    """
    if text_hash(module) < TEST_SHARE * 2**64:
        return "test"
    return "validation" if is_held_out(module, "", VALIDATION_SHARE) else "train"


def stamp(position: str) -> str:
    """Return a record's id; it begins with a hash, so that the first ids are a fair sample."""
    return f"{hashlib.blake2b(position.encode(), digest_size=4).hexdigest()}:{position}"


def task_row(position: str, module: str, **columns: Any) -> Row:
    """Return a record of a task with its id, group and split.

    Args:
        position: unique in the task; it names the entry.
    """
    return {"id": stamp(position), **columns, "group": module, "split": split_of(module)}


def across_modules(
    rows: list[Row], text: Callable[[Row], str], task: str, dropped: Counter[str]
) -> list[Row]:
    """Return rows by id, without those that share a long line or most text with another module.

    Splits are by module, so no test text was seen in training.
    """
    rows = sorted(rows, key=lambda row: row["id"])
    keep = near_duplicates([text(row) for row in rows], [row["group"] for row in rows], NEAR)
    first: dict[str, str] = {}
    for number, row in enumerate(rows):
        lines = [line for line in text(row).splitlines() if len(line) > LONG_LINE]
        keep[number] = keep[number] and all(
            first.get(line, row["group"]) == row["group"] for line in lines
        )
        if keep[number]:
            first.update((line, str(row["group"])) for line in lines)
    dropped[f"{task}: nearly a text of another module"] += len(rows) - sum(keep)
    return [row for row, good in zip(rows, keep, strict=True) if good]

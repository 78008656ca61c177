"""The files of data/preferences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.errors import UserError
from llm.runtime.parquet import readable

SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "task", "prompt", "chosen", "rejected")]
    + [(name, pa.float64()) for name in ("chosen_score", "rejected_score")]
)
REMEDY = "Run `dvc repro -sf align/dvc.yaml:preferences` to write it again."


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, and their rewards."""

    id: str
    task: str
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float


def write_pairs(path: Path, pairs: Sequence[Preference]) -> None:
    """Write pairs as a parquet file."""
    table = pa.Table.from_pylist([asdict(each) for each in pairs], schema=SCHEMA)
    pq.write_table(table, path, compression="zstd")


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Read pairs: id, prompt, chosen, rejected.

    Raises:
        UserError: the file cannot be read, has none, or a pair has an empty or twice the same
            answer.
    """
    with readable(path, REMEDY):
        rows: list[dict[str, Any]] = pq.read_table(
            path, columns=["id", "prompt", "chosen", "rejected"]
        ).to_pylist()
    if not rows:
        raise UserError(f"{path} holds no pairs. {REMEDY}")
    for row in rows:
        if not row["chosen"] or not row["rejected"] or row["chosen"] == row["rejected"]:
            raise UserError(
                f"{path}: pair {row['id']} needs two different answers with text, found {row['chosen']!r} and "
                f"{row['rejected']!r}."
            )
    return rows

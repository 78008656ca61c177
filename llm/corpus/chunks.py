"""The documents of `data/raw/<name>` in chunks of bounded size, the same ones whoever reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from llm.errors import UserError
from llm.runtime.parquet import readable

CHUNK_BYTES = 16 << 20  # of text, about; a single document may be larger
COLUMNS = ["id", "text", "source"]


class Chunk(NamedTuple):
    """Row groups `first` … `last` - 1 of a part."""

    path: Path
    first: int
    last: int
    place: int  # of its first document among all of the data set, from 0
    rows: int
    bytes: int  # of text, uncompressed; a few more for each document


@contextmanager
def _readable(path: Path) -> Iterator[pq.ParquetFile]:
    remedy = "Run `dvc repro -f download` to write it again."
    with readable(path, remedy), pq.ParquetFile(path) as file:
        yield file


def find_chunks(directory: Path, size: int = CHUNK_BYTES) -> list[Chunk]:
    """All chunks of a data set, in the order of its documents.

    Args:
        directory: data/raw/<name>.
        size: bytes from which a chunk is complete; 1: a chunk is a row group.

    Raises:
        UserError: no parts, one that is truncated, or one without the columns of documents.
    """
    paths = sorted(Path(directory).glob("part-*.parquet"))
    if not paths:
        raise UserError(
            f"{directory}: no part-*.parquet here. Run `dvc repro download` to make them."
        )
    found: list[Chunk] = []
    place = 0
    for path in paths:
        with _readable(path) as file:
            names = file.schema_arrow.names
            if missing := [name for name in COLUMNS if name not in names]:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}. "
                    "Run `dvc repro -f download` to write it again."
                )
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            first = rows = held = 0
            for number, group in enumerate(groups, 1):
                rows, held = (
                    rows + group.num_rows,
                    held + group.column(names.index("text")).total_uncompressed_size,
                )
                if held >= size or number == len(groups):
                    found.append(Chunk(path, first, number, place, rows, held))
                    first, place, rows, held = number, place + rows, 0, 0
    return found


def read_chunk(chunk: Chunk) -> pa.Table:
    """Its documents: columns id, text and source, strings, in one piece each.

    Raises:
        UserError: the part is damaged.
    """
    with _readable(chunk.path) as file:
        table = file.read_row_groups(
            list(range(chunk.first, chunk.last)), columns=COLUMNS, use_threads=False
        )
        return table.combine_chunks()


def digest(chunks: list[Chunk]) -> str:
    """Of the parts' footers, which hold sizes, places and statistics of all columns: cheap, and
    never of a time.
    """
    whole = hashlib.sha256()
    for path in dict.fromkeys(chunk.path for chunk in chunks):
        with open(path, "rb") as file:
            file.seek(-8, 2)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, 2)
            whole.update(path.name.encode() + b"\0" + file.read(size))
    return whole.hexdigest()

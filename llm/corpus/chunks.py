"""Chunks of bounded size of the documents of `data/raw/<name>`, the same for every reader."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from llm.sources import raw

CHUNK_BYTES = 16 << 20  # bytes of text, roughly; a single document may be larger
COLUMNS = ["id", "text", "source", "group"]


class Chunk(NamedTuple):
    """Row groups `first` … `last` - 1 of a part."""

    path: Path
    first: int
    last: int
    start: int  # number of its first document in the data set, from 0
    rows: int
    bytes: int  # uncompressed text, and a few bytes more for each document


def find_chunks(directory: Path, size: int = CHUNK_BYTES) -> list[Chunk]:
    """Return all chunks of a data set, in the order of its documents.

    Args:
        directory: data/raw/<name>.
        size: bytes from which a chunk is complete; 1 makes each row group a chunk.

    Raises:
        UserError: no parts, one that is truncated, or one without the columns of documents.
    """
    chunks: list[Chunk] = []
    start = 0
    for path in raw.parts(directory):
        with raw.open_part(path, COLUMNS) as file:
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            text = file.schema_arrow.names.index("text")
            first = rows = bytes_read = 0
            for number, group in enumerate(groups, 1):
                rows += group.num_rows
                bytes_read += group.column(text).total_uncompressed_size
                if bytes_read >= size or number == len(groups):
                    chunks.append(Chunk(path, first, number, start, rows, bytes_read))
                    first, start, rows, bytes_read = number, start + rows, 0, 0
    return chunks


def read_chunk(chunk: Chunk) -> pa.Table:
    """Read a chunk's documents: string columns id, text, source and group, in one piece each.

    Raises:
        UserError: the part is damaged.
    """
    with raw.open_part(chunk.path) as file:
        table = file.read_row_groups(
            list(range(chunk.first, chunk.last)), columns=COLUMNS, use_threads=False
        )
        return table.combine_chunks()


def digest(chunks: list[Chunk]) -> str:
    """Return the SHA-256 of the parts' footers.

    Footers hold sizes, offsets and statistics of all columns, and no time. Reading them is cheap.
    """
    sha256 = hashlib.sha256()
    for path in dict.fromkeys(chunk.path for chunk in chunks):
        with open(path, "rb") as file:
            file.seek(-8, 2)
            size = int.from_bytes(file.read(4), "little")
            file.seek(-8 - size, 2)
            sha256.update(path.name.encode() + b"\0" + file.read(size))
    return sha256.hexdigest()

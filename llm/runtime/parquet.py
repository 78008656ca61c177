"""Errors of Parquet files that the pipeline wrote and cannot read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llm.errors import UserError, first_line


@contextmanager
def readable(path: Path, remedy: str) -> Iterator[None]:
    """Turn what pyarrow says of a broken or missing file into a message.

    Args:
        path: the Parquet file that the block reads.
        remedy: what to do about it, as a sentence.

    Raises:
        UserError: the file cannot be read.
    """
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read ({first_line(error)}). {remedy}") from None

"""Raw records on disk, written and read as a stream.

They are in `data/raw/<name>/part-NNNNN.parquet`, beside `manifest.json`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llm.errors import UserError
from llm.runtime.io import sha256
from llm.runtime.parquet import readable

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Columns of each kind of data set. All are strings; `answers` is a list of strings, empty where
# there is no answer. The `group` of pretraining text is empty where documents stand alone.
FIELDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("id", "text", "source", "group"),
    "summarization": ("id", "document", "summary", "group", "split"),
    "question_answering": ("id", "context", "question", "answers", "group", "split"),
    "classification": ("id", "text", "text_pair", "label", "group", "split"),
    "instructions": ("id", "instruction", "input", "output", "group", "split"),
}
METADATA = ("id", "source", "group", "split")  # the other columns are the text of a record
SPLITS = ("train", "validation", "test", "")  # "": mix decides by a hash of `group`

PART_BYTES = 64 << 20  # uncompressed text in a part
GROUP_BYTES = 4 << 20  # text in a row group, which writer and reader hold in memory
GROUP_ROWS = 16384
RERUN = "Run `dvc repro -f download` to write it again."


def fields(kind: str) -> tuple[str, ...]:
    """Return the columns of a kind's records; a user's own kind names them in its module."""
    if kind in FIELDS:
        return FIELDS[kind]
    from llm import tasks

    return ("id", *tasks.get(kind).COLUMNS, "group", "split")


def schema(kind: str) -> pa.Schema:
    """Return the Arrow schema of a kind's parts; only `text_pair` may be null."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field(
                name,
                pa.list_(pa.string()) if name == "answers" else pa.string(),
                nullable=name == "text_pair",
            )
            for name in fields(kind)
        ]
    )


def text_bytes(record: dict[str, Any]) -> int:
    """Return the number of UTF-8 bytes of a record's text, without its metadata.

    Raises:
        UnicodeEncodeError: a string holds half of a surrogate pair, which cannot be encoded.
    """
    total = 0
    for name, value in record.items():
        if name in METADATA or value is None:
            continue
        for text in value if isinstance(value, list) else (value,):
            total += len(text) if text.isascii() else len(text.encode())
    return total


class Writer:
    """Writer of records in parts of bounded size; the same records give the same bytes."""

    def __init__(
        self,
        directory: Path,
        kind: str,
        part_bytes: int = PART_BYTES,
        group_bytes: int = GROUP_BYTES,
        position: dict[str, Any] | None = None,
    ) -> None:
        """Create the directory, and resume where `position`, the result of `position()`, says."""
        self.directory, self.schema = Path(directory), schema(kind)
        self.part_bytes, self.group_bytes = part_bytes, group_bytes
        self.rows = self.bytes = 0  # of all parts; bytes of text
        self.files: list[dict[str, Any]] = []  # path, rows, bytes (of the file), sha256
        if position is not None:
            self.rows, self.bytes = position["rows"], position["bytes"]
            self.files = list(position["files"])
        self._buffer: list[dict[str, Any]] = []
        self._buffered = self._part_rows = self._part_text = 0
        self._part: Any = None
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, record: dict[str, Any]) -> None:
        """Write a record that has exactly the kind's columns."""
        size = text_bytes(record)
        self._buffer.append(record)
        self._buffered += size
        self.rows += 1
        self.bytes += size
        if self._buffered >= self.group_bytes or len(self._buffer) >= GROUP_ROWS:
            self._flush()
            if self._part_text >= self.part_bytes:
                self._finish_part()

    def position(self) -> dict[str, Any] | None:
        """Return where writing can resume, or None while a part is unfinished."""
        if self._buffer or self._part is not None:
            return None
        return {"rows": self.rows, "bytes": self.bytes, "files": list(self.files)}

    def close(self) -> None:
        """Write what is buffered; `files` is complete afterwards."""
        self._flush()
        self._finish_part()

    def _flush(self) -> None:
        if not self._buffer:
            return
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._part is None:
            path = self.directory / f"part-{len(self.files):05d}.parquet"
            self._part = pq.ParquetWriter(
                path, self.schema, compression="zstd", compression_level=3
            )
        self._part.write_table(pa.Table.from_pylist(self._buffer, schema=self.schema))
        self._part_rows += len(self._buffer)
        self._part_text += self._buffered
        self._buffer, self._buffered = [], 0

    def _finish_part(self) -> None:
        if self._part is None:
            return
        self._part.close()
        path = self.directory / f"part-{len(self.files):05d}.parquet"
        self.files.append(
            {
                "path": path.name,
                "rows": self._part_rows,
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
        )
        self._part, self._part_rows, self._part_text = None, 0, 0

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        elif self._part is not None:
            self._part.close()  # only releases the handle: a later call rewrites this part


def read(directory: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records of `data/raw/<name>` in file order, read in batches.

    Args:
        directory: data/raw/<name>.
        columns: columns to read; None for all.

    Raises:
        UserError: there are no parts, a part is truncated, or a column is missing.
    """
    for path in parts(directory):
        with open_part(path, columns or ()) as file:
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                yield from batch.to_pylist()


@contextmanager
def open_part(path: Path, columns: Iterable[str] = ()) -> Iterator[pq.ParquetFile]:
    """Open a part for reading.

    Args:
        columns: columns that it must have.

    Raises:
        UserError: it is truncated, also while the block reads it, or lacks a column.
    """
    import pyarrow.parquet as pq

    with readable(path, RERUN), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise UserError(
                f"{path} has no column {', '.join(missing)}; it has {', '.join(names)}. "
                "Its data set is of another kind than the stage expects: set download.<name>.kind."
            )
        yield file


def parts(directory: Path) -> list[Path]:
    """Return the paths of the parts in order; raise UserError if there are none."""
    paths = sorted(Path(directory).glob("part-*.parquet"))
    if not paths:
        raise UserError(
            f"{directory}: no part-*.parquet here. Run `dvc repro download` to make them."
        )
    return paths

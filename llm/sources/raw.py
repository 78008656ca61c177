"""Raw records on disk: `data/raw/<name>/part-NNNNN.parquet` beside `manifest.json`, written and
read as a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from llm.errors import UserError
from llm.runtime.io import sha256
from llm.runtime.parquet import readable

if TYPE_CHECKING:
    import pyarrow as pa

# Columns of each kind of data set. All are strings; `answers` is a list of strings, empty where
# there is no answer.
FIELDS: dict[str, tuple[str, ...]] = {
    "pretrain": ("id", "text", "source"),
    "summarization": ("id", "document", "summary", "group", "split"),
    "question_answering": ("id", "context", "question", "answers", "group", "split"),
    "classification": ("id", "text", "text_pair", "label", "group", "split"),
    "instructions": ("id", "instruction", "input", "output", "group", "split"),
}
PLACE = ("id", "source", "group", "split")  # where a record stands; the other columns are its text
SPLITS = ("train", "validation", "test", "")  # "": mix decides by a hash of `group`

PART_BYTES = 64 << 20  # text of a part, uncompressed
GROUP_BYTES = 4 << 20  # text of a row group: what writer and reader hold at a time
GROUP_ROWS = 16384
AGAIN = "Run `dvc repro -f download` to write it again."


def fields(kind: str) -> tuple[str, ...]:
    """Columns of a kind's records; a kind of task of the user's own names them in its module."""
    if kind in FIELDS:
        return FIELDS[kind]
    from llm import tasks

    return ("id", *tasks.get(kind).COLUMNS, "group", "split")


def schema(kind: str) -> pa.Schema:
    """Arrow schema of a kind's parts; only `text_pair` may be null."""
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
    """UTF-8 bytes of a record's own text.

    Raises:
        UnicodeEncodeError: a string holds half of a surrogate pair, which no file can hold.
    """
    total = 0
    for name, value in record.items():
        if name in PLACE or value is None:
            continue
        for text in value if isinstance(value, list) else (value,):
            total += len(text) if text.isascii() else len(text.encode())
    return total


class Writer:
    """Writes records in parts of bounded size; the same records give the same bytes."""

    def __init__(
        self,
        directory: Path,
        kind: str,
        part_bytes: int = PART_BYTES,
        group_bytes: int = GROUP_BYTES,
        place: dict[str, Any] | None = None,
    ) -> None:
        """`place`: what `place()` gave when a part had just been finished; writing goes on behind
        it.
        """
        self.directory, self.schema = Path(directory), schema(kind)
        self.part_bytes, self.group_bytes = part_bytes, group_bytes
        self.rows = self.bytes = 0  # of all parts; bytes of text
        self.files: list[dict[str, Any]] = []  # path, rows, bytes (of the file), sha256
        if place is not None:
            self.rows, self.bytes, self.files = place["rows"], place["bytes"], list(place["files"])
        self._buffer: list[dict[str, Any]] = []
        self._buffered = self._part_rows = self._part_text = 0
        self._part: Any = None
        self.directory.mkdir(parents=True, exist_ok=True)

    def write(self, record: dict[str, Any]) -> None:
        """Add a record that has exactly the kind's columns."""
        size = text_bytes(record)
        self._buffer.append(record)
        self._buffered += size
        self.rows += 1
        self.bytes += size
        if self._buffered >= self.group_bytes or len(self._buffer) >= GROUP_ROWS:
            self._flush()
            if self._part_text >= self.part_bytes:
                self._finish_part()

    def place(self) -> dict[str, Any] | None:
        """Where writing can go on; None but right after a part was finished, when nothing is in
        memory.
        """
        if self._buffer or self._part is not None:
            return None
        return {"rows": self.rows, "bytes": self.bytes, "files": list(self.files)}

    def close(self) -> None:
        """Write what is left; `files` is complete afterwards."""
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
        elif self._part is not None:  # a later call begins this part again; only release the handle
            self._part.close()


def read(directory: Path, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
    """Records of `data/raw/<name>` in file order, a batch of a row group at a time.

    Args:
        directory: data/raw/<name>.
        columns: those to read; None for all.

    Raises:
        UserError: no parts, a part that is truncated, or a column that is not there.
    """
    import pyarrow.parquet as pq

    for path in _parts(directory):
        with readable(path, AGAIN), pq.ParquetFile(path) as file:
            missing = [name for name in columns or [] if name not in file.schema_arrow.names]
            if missing:
                raise UserError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}. "
                    f"Its data set is of another kind than the stage expects: set download.<name>.kind."
                )
            for batch in file.iter_batches(batch_size=1024, columns=columns):
                yield from batch.to_pylist()


def groups(directory: Path) -> list[tuple[Path, int, int]]:
    """File, number and rows of each row group of `data/raw/<name>`, in the order in which `read`
    reads them.

    Raises:
        UserError: as `read`.
    """
    import pyarrow.parquet as pq

    found = []
    for path in _parts(directory):
        with readable(path, AGAIN), pq.ParquetFile(path) as file:
            rows = [
                file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)
            ]
        found += [(path, number, count) for number, count in enumerate(rows)]
    return found


def read_group(path: Path, group: int, column: str = "text") -> list[Any]:
    """One column of a row group. Raises UserError as `read`."""
    import pyarrow.parquet as pq

    with readable(path, AGAIN), pq.ParquetFile(path) as file:
        values: list[Any] = file.read_row_group(group, columns=[column])[column].to_pylist()
        return values


def _parts(directory: Path) -> list[Path]:
    paths = sorted(Path(directory).glob("part-*.parquet"))
    if not paths:
        raise UserError(
            f"{directory}: no part-*.parquet here. Run `dvc repro download` to make them."
        )
    return paths

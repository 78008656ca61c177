"""The files of the evaluation: test sets, training text, predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm import tasks
from llm.errors import UserError
from llm.runtime.parquet import readable

COMMON = ("id", "prompt", "references", "kind", "truncated")
POSITIVE = "positive"  # a column that test sets of two classes may have: the class that F1 is of


@dataclass(frozen=True)
class TestSet:
    """A task's held-out examples; rows have the columns of `COMMON` and the kind's `TEST_COLUMNS`."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    name: str
    kind: str
    rows: list[dict[str, Any]]

    @property
    def closed(self) -> bool:
        """Return whether answers are chosen from given ones."""
        return tasks.get(self.kind, self.name).CLOSED

    def head(self, count: int | None) -> TestSet:
        """Return the first `count` examples; None for all."""
        return TestSet(self.name, self.kind, self.rows[:count])

    def texts(self) -> Iterator[list[str]]:
        """Yield each example's input texts and references, without the prompt's wording."""
        columns = tasks.get(self.kind, self.name).TEST_COLUMNS
        for row in self.rows:
            # A label is no text; the choices are in every prompt.
            inputs = [row[column] for column in columns if column not in ("choices", "label")]
            yield [text for text in inputs if isinstance(text, str)] + (
                [] if self.closed else list(row["references"])
            )


def read_tests(directory: Path, examples: int | None) -> list[TestSet]:
    """Read the test sets by name, the first `examples` rows of each; None for all.

    Rows are in the order of a hash.

    Raises:
        UserError: there is none, or one is unreadable, empty, or without a column.
    """
    paths = sorted(directory.glob("*.parquet"))
    if not paths:
        raise UserError(f"{directory}: no test sets (*.parquet). Run `dvc repro mix`.")
    return [_read_test(path, examples) for path in paths]


def _read_test(path: Path, examples: int | None) -> TestSet:
    rows: list[dict[str, Any]] = []
    for batch in _batches(path, None):
        rows += batch if examples is None else batch[: examples - len(rows)]
        if len(rows) == examples:
            break
    if not rows:
        raise UserError(
            f"{path} has no examples. Raise mix.test_fraction, or give the task more data."
        )
    kind = rows[0].get("kind")
    if kind not in tasks.kinds():
        raise UserError(
            f"{path}: kind is {kind!r}; expected one of {', '.join(tasks.kinds())}. Run `dvc repro mix`."
        )
    task = tasks.get(kind, path.stem)
    missing = [column for column in (*COMMON, *task.TEST_COLUMNS) if column not in rows[0]]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(missing)}, which {kind} needs. Run `dvc repro mix`."
        )
    if task.CLOSED and not all(row["choices"] for row in rows):
        raise UserError(
            f"{path}: an example has no choices: training holds no example of this task. Check its source."
        )
    for row in rows:
        row["references"] = [text or "" for text in row["references"] or []]
    return TestSet(path.stem, kind, rows)


def train_examples(path: Path, task: str, limit: int) -> list[tuple[str, str]]:
    """Return prompts and responses of the first `limit` training examples of a task."""
    found: list[tuple[str, str]] = []
    for batch in _batches(path, ["task", "prompt", "response"]):
        found += [(row["prompt"], row["response"]) for row in batch if row["task"] == task]
        if len(found) >= limit:
            break
    return found[:limit]


def train_texts(path: Path) -> Iterator[str]:
    """Yield prompt and response of every training example as one text."""
    for batch in _batches(path, ["prompt", "response"]):
        for row in batch:
            yield f"{row['prompt']}\n{row['response']}"


def write_predictions(
    path: Path, rows: list[dict[str, Any]], predictions: list[str], columns: dict[str, list[Any]]
) -> None:
    """`id, prompt, prediction, references`, `positive` where the rows have it, and one column for
    each own score.
    """
    import pyarrow as pa

    write_columns(
        path,
        {
            "id": pa.array([row["id"] for row in rows], pa.string()),
            "prompt": pa.array([row["prompt"] for row in rows], pa.string()),
            "prediction": pa.array(predictions, pa.string()),
            "references": pa.array([row["references"] for row in rows], pa.list_(pa.string())),
            **({POSITIVE: [row[POSITIVE] for row in rows]} if POSITIVE in rows[0] else {}),
            **columns,
        },
    )


def write_columns(path: Path, columns: Mapping[str, Any]) -> None:
    """Write a parquet file of these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(dict(columns)), path, compression="zstd")


def _batches(path: Path, columns: list[str] | None) -> Iterator[list[dict[str, Any]]]:
    """Rows of a parquet file, some at a time; what pyarrow says of a broken file becomes a
    UserError.
    """
    import pyarrow.parquet as pq

    if not path.exists():
        raise UserError(f"{path}: no such file. Run `dvc repro mix`.")
    with (
        readable(path, "Run `dvc repro -sf mix` to write it again."),
        pq.ParquetFile(path) as file,
    ):
        missing = set(columns or ()) - set(file.schema_arrow.names)
        if missing:
            raise UserError(f"{path}: no column {', '.join(sorted(missing))}. Run `dvc repro mix`.")
        for batch in file.iter_batches(batch_size=1024, columns=columns):
            yield batch.to_pylist()

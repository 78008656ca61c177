"""Files of `data/mix`, and the counts in `metrics/mix.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.errors import UserError
from llm.tasks.base import Encoder, Example
from llm.tasks.mixture import Dataset, Drawn, held_out
from llm.tasks.splits import Survey, listed

EXAMPLES = pa.schema([(name, pa.string()) for name in ("id", "task", "prompt", "response")])
ROWS = 4096  # rows of a row group


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write `train.parquet` or `val.parquet` in the order of `examples`."""
    with pq.ParquetWriter(path, EXAMPLES, compression="zstd") as writer:
        for start in range(0, len(examples), ROWS):
            part = examples[start : start + ROWS]
            rows = [{name: getattr(example, name) for name in EXAMPLES.names} for example in part]
            writer.write_table(pa.Table.from_pylist(rows, schema=EXAMPLES))


def write_test(path: Path, dataset: Dataset, tokenizer: Encoder, max_tokens: int) -> dict[str, Any]:
    """Write `test/<task>.parquet`.

    Returns:
        The number of `test`, `truncated` and `answer_cut` examples, and `dropped` by reason.

    Raises:
        UserError: no test example can be used.
    """
    schema = pa.schema(
        [
            ("id", pa.string()),
            ("kind", pa.string()),
            ("prompt", pa.string()),
            ("references", pa.list_(pa.string())),
            ("truncated", pa.bool_()),
            *dataset.task.TEST_COLUMNS.items(),
            *([("positive", pa.string())] if dataset.positive else []),
        ]
    )
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    rows = 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for bucket in held_out(dataset, tokenizer, max_tokens, dropped, counts):
            for start in range(0, len(bucket), ROWS):
                writer.write_table(
                    pa.Table.from_pylist(bucket[start : start + ROWS], schema=schema)
                )
            rows += len(bucket)
    if not rows:
        raise UserError(
            f"mix.tasks.{dataset.name}: no test example can be used (dropped: {listed(dropped)}). "
            f"Where they are too long, raise mix.max_tokens (now {max_tokens})."
        )
    return {
        "test": rows,
        "truncated": counts["truncated"],
        "answer_cut": counts["answer_cut"],
        "dropped": dropped,
    }


def check_drawn(
    name: str, examples: Sequence[Example], dropped: Counter[str], max_tokens: int
) -> None:
    """Refuse a task without a single usable training example.

    Raises:
        UserError: no example is left; the message lists the reasons.
    """
    if not examples:
        raise UserError(
            f"mix.tasks.{name}: no training example is left (dropped: {listed(dropped)}). Where they are too long, "
            f"raise mix.max_tokens (now {max_tokens}); where the share is too small, raise mix.examples or the weight."
        )


def task_metrics(
    kind: str,
    train: Drawn,
    val: Drawn,
    survey: Survey | None = None,
    test: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a task's entry in `metrics/mix.json`; plain text has no survey and no test side.

    `truncated` counts the examples of all three sides whose text was cut. The means are over the
    training examples.
    """
    test = test or {"test": 0, "truncated": 0, "answer_cut": 0, "dropped": Counter()}
    dropped = (
        train.dropped + val.dropped + test["dropped"] + (survey.dropped if survey else Counter())
    )
    number = max(len(train.examples), 1)
    return {
        "kind": kind,
        "train": len(train.examples),
        "val": len(val.examples),
        "test": test["test"],
        "truncated": test["truncated"]
        + sum(example.truncated for example in (*train.examples, *val.examples)),
        "test_truncated": test["truncated"],
        "test_answer_cut": test["answer_cut"],
        "dropped": dict(sorted(dropped.items())),
        "mean_prompt_tokens": sum(example.prompt_tokens for example in train.examples) / number,
        "mean_response_tokens": sum(example.response_tokens for example in train.examples) / number,
        "labels": survey.labels if survey else {},
    }


def describe(tasks: dict[str, dict[str, Any]]) -> Iterable[str]:
    """Yield one line for each task: its examples, their mean length, and what was dropped."""
    for name, task in tasks.items():
        dropped = f" · dropped {listed(task['dropped'])}" if task["dropped"] else ""
        yield (
            f"  {name}: {task['train']:,} train, {task['val']:,} validation, {task['test']:,} test · "
            f"{task['mean_prompt_tokens']:.0f} + {task['mean_response_tokens']:.0f} tokens · "
            f"{task['truncated']:,} cut{dropped}"
        )

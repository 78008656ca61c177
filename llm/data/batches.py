"""Micro-batches: the next one is prepared while the current one computes.

A data set with remote rows learns of each row some hundred rows before it is read (`announced`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from llm.data.order import batch_ids

T = TypeVar("T")
# Fields of rows, beside tokens, targets, segments and positions, that a loss may take: weights of
# the targets (PackedExamples); the answer of each target, and its reference (PackedPairs).
FIELDS = ("factors", "answers", "reference")


class Dataset(Protocol):
    """Rows of one length, addressed by number."""

    num_rows: int

    def rows(self, ids: np.ndarray) -> Any:
        """Return tokens, targets, segments, positions: (rows, length), or None for the last two.

        The result may have more fields, each (rows, length), for a loss that needs them: those of
        `FIELDS`.
        """

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of predicted tokens of each row, or their total weight, (rows,)."""


@runtime_checkable
class Distant(Protocol):
    """A data set whose rows may be remote."""

    rows_ahead: int  # how many rows ahead a row is announced; 0: all rows are local

    def ahead(self, ids: np.ndarray) -> None:
        """Note that the rows `ids` will be read soon, and return at once."""


class MicroBatch(NamedTuple):
    """A part of a step's global batch."""

    step: int
    number: int  # its position in the global batch
    ids: np.ndarray  # rows of the whole global batch
    labels: float  # predicted tokens of the whole global batch, or their total weight
    tensors: dict[str, Tensor]  # arguments of Transformer.loss, each (micro-batch, length)


def one_ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield the items in order, while a thread makes the next one.

    An exception of the thread is raised in the turn of its item.
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="loader") as thread:
        future = thread.submit(next, items, end)
        while (item := future.result()) is not end:
            future = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


def announced(data: Dataset, items: Iterator[T], rows_of: Callable[[T], np.ndarray]) -> Iterator[T]:
    """Yield the items in order; announce rows to a remote data set `rows_ahead` rows earlier."""
    if not isinstance(data, Distant) or not data.rows_ahead:
        yield from items
        return
    waiting: deque[T] = deque()
    rows = 0
    for item in items:
        data.ahead(rows_of(item))
        waiting.append(item)
        rows += len(rows_of(item))
        while rows > data.rows_ahead:
            rows -= len(rows_of(waiting[0]))
            yield waiting.popleft()
    yield from waiting


def host_tensors(data: Dataset, ids: np.ndarray, size: int, pin: bool) -> dict[str, Tensor]:
    """Return rows as arguments of Transformer.loss, each (size, length).

    Args:
        data: holds the rows.
        ids: numbers of the rows, (rows,).
        size: rows to return; rows without labels fill up the rest.
        pin: use page-locked memory, from which a CUDA device copies while it computes.
    """
    rows = data.rows(ids)
    tokens, targets, segments, positions = rows[:4]
    more = {name: getattr(rows, name, None) for name in FIELDS}
    if missing := size - len(ids):
        tokens, targets = (
            _filled(array, missing, value) for array, value in ((tokens, 0), (targets, -100))
        )
        if segments is not None:
            segments, positions = (_filled(array, missing, 0) for array in (segments, positions))
        more = {k: None if v is None else _filled(v, missing, 0) for k, v in more.items()}
    arrays = {
        "input_ids": tokens,
        "targets": targets,
        "segments": segments,
        "positions": positions,
        **more,
    }
    tensors = {
        k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in arrays.items() if v is not None
    }
    return {key: value.pin_memory() for key, value in tensors.items()} if pin else tensors


def _filled(array: np.ndarray, rows: int, value: int) -> np.ndarray:
    return np.concatenate((array, np.full((rows, array.shape[1]), value, dtype=array.dtype)))


def micro_batches(
    data: Dataset, seed: int, steps: range, batch_size: int, micro: int, numbers: range, pin: bool
) -> Iterator[MicroBatch]:
    """Yield the micro-batches `numbers` of each step's global batch, in `llm.data.order`'s order."""

    def parts() -> Iterator[tuple[int, int, np.ndarray, float, np.ndarray]]:
        for step in steps:
            ids = batch_ids(seed, step, batch_size, data.num_rows)
            labels = float(data.label_counts(ids).sum())
            for number in numbers:
                yield step, number, ids, labels, ids[number * micro : (number + 1) * micro]

    for step, number, ids, labels, own in announced(data, parts(), lambda part: part[-1]):
        yield MicroBatch(step, number, ids, labels, host_tensors(data, own, micro, pin))

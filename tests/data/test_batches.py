"""Rows are read one ahead, in their order, and what goes wrong there is said where it is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from llm.data.batches import host_tensors, micro_batches, one_ahead
from llm.data.order import batch_ids
from llm.errors import UserError
from tests.train.test_trainer import LENGTH, ROWS, Sequences, train


class Counting(Iterator[int]):
    """0, 1, 2 … and how many were asked for; `stop` raises in place of that item."""

    def __init__(self, end: int, stop: int | None = None) -> None:
        self.end, self.stop, self.made = end, stop, 0
        self.threads: set[str] = set()

    def __next__(self) -> int:
        self.threads.add(threading.current_thread().name)
        if self.made == self.end:
            raise StopIteration
        if self.made == self.stop:
            raise UserError("shard 7 cannot be read")
        self.made += 1
        return self.made - 1


def test_items_keep_their_order_and_at_most_one_is_made_ahead() -> None:
    source = Counting(50)
    for expected, item in enumerate(one_ahead(source)):
        assert item == expected
        assert source.made <= item + 2
    assert source.made == 50
    assert threading.current_thread().name not in source.threads
    assert len(source.threads) == 1


def test_the_next_item_is_made_while_the_present_one_is_in_use() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        made.set()
        yield 1

    coming = one_ahead(items())
    assert next(coming) == 0
    assert made.wait(10)
    assert list(coming) == [1]


def test_an_error_comes_in_its_items_turn_with_its_message() -> None:
    coming = one_ahead(Counting(9, stop=2))
    assert [next(coming), next(coming)] == [0, 1]
    with pytest.raises(UserError, match="shard 7 cannot be read"):
        next(coming)


def test_closing_early_leaves_no_thread() -> None:
    coming = one_ahead(Counting(1000))
    next(coming)
    coming.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_rows_that_cannot_be_read_end_training_with_their_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = Sequences.rows

    def broken(self: Sequences, ids: np.ndarray) -> object:
        if len(self.seen) >= 40:
            raise UserError("data/tokens/train-00003.npy cannot be read")
        return rows(self, ids)

    monkeypatch.setattr(Sequences, "rows", broken)
    with pytest.raises(UserError, match=r"train-00003\.npy cannot be read"):
        train(eval_every=1000)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_micro_batches_are_a_process_s_part_of_each_global_batch() -> None:
    data = Sequences()
    found = list(micro_batches(data, 1, range(3, 6), 9, 2, range(1, 6, 2), pin=False))
    assert [(part.step, part.number) for part in found] == [
        (step, n) for step in (3, 4, 5) for n in (1, 3, 5)
    ]
    for part in found:
        ids = batch_ids(1, part.step, 9, ROWS)
        own = ids[part.number * 2 : part.number * 2 + 2]
        assert part.ids.tolist() == ids.tolist()
        assert part.labels == data.label_counts(ids).sum()
        assert part.tensors["input_ids"].shape == part.tensors["targets"].shape == (2, LENGTH)
        assert part.tensors["input_ids"][: len(own)].tolist() == data.data[own, :-1].tolist()
        assert (part.tensors["targets"][len(own) :] == -100).all()


def test_no_rows_at_all_are_a_micro_batch_without_a_label() -> None:
    tensors = host_tensors(Sequences(), np.zeros(0, dtype=np.int64), 3, pin=False)
    assert tensors["targets"].shape == (3, LENGTH)
    assert (tensors["targets"] == -100).all()

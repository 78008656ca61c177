"""Packed rows hold every example once, whole, with its own labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.packing import PackedExamples, pack

CAPACITY, EOS = 32, 0

examples_strategy = st.lists(
    st.lists(st.integers(1, 99), min_size=1, max_size=CAPACITY - 1).flatmap(
        lambda ids: st.tuples(st.just([*ids, EOS]), st.integers(0, len(ids)))
    ),
    min_size=1,
    max_size=60,
)


@given(lengths=st.lists(st.integers(1, CAPACITY), max_size=300), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_every_example_stands_in_one_row_and_no_row_overflows(
    lengths: list[int], seed: int
) -> None:
    rows = pack(np.array(lengths, dtype=np.int64), CAPACITY, seed)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= CAPACITY for row in rows)


def test_packing_is_tight_on_real_lengths() -> None:
    lengths = np.random.default_rng(0).gamma(3.0, 50.0, size=5000).clip(20, 384).astype(np.int64)
    rows = pack(lengths, 512, seed=1)
    assert lengths.sum() / (len(rows) * 512) > 0.95


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(ValueError, match="33"):
        pack(np.array([33]), CAPACITY, 0)


@given(examples=examples_strategy, seed=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_rows_equal_a_slow_reference(examples: list[tuple[list[int], int]], seed: int) -> None:
    data = PackedExamples(examples, CAPACITY, EOS, seed)
    rows = data.rows(np.arange(data.num_rows))
    seen = []
    for r in range(data.num_rows):
        for segment in range(1, rows.segments[r].max() + 1):
            (where,) = np.nonzero(rows.segments[r] == segment)
            assert (np.diff(where) == 1).all()
            assert rows.positions[r, where].tolist() == list(range(len(where)))
            ids = rows.tokens[r, where].tolist()
            targets = rows.targets[r, where].tolist()
            candidates = [p for i, p in examples if i == ids]
            expected = [
                [ids[t + 1] if t + 1 < len(ids) and t + 1 >= p else -100 for t in range(len(ids))]
                for p in candidates
            ]
            assert targets in expected
            seen.append(ids)
        padding = rows.segments[r] == 0
        assert (rows.targets[r, padding] == -100).all()
        assert (rows.targets[r] != -100).sum() == data.label_counts(np.array([r]))[0]
    assert sorted(seen) == sorted(ids for ids, _ in examples)


def test_a_head_is_the_first_rows_and_leaves_the_whole_as_it_was() -> None:
    examples = [(list(range(10 * i, 10 * i + 10)), 4) for i in range(8)]
    whole = PackedExamples(examples, capacity=20, eos_id=0, seed=3)
    head = whole.head(tokens=50)
    assert (head.num_rows, head.num_examples) == (2, 4)
    assert (whole.num_rows, whole.num_examples) == (4, 8)
    ids = np.arange(2)
    assert all(np.array_equal(a, b) for a, b in zip(head.rows(ids), whole.rows(ids), strict=True))
    assert whole.head(tokens=1).num_rows == 1
    assert whole.head(tokens=10**9).num_rows == 4

"""Packed rows hold every example once, whole, with its own labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.packing import LossWeights, PackedExamples, pack

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


@pytest.mark.parametrize("prompt", [0.0, 0.1])
@pytest.mark.parametrize("per_example", [False, True])
def test_weights_of_tokens_are_those_of_their_example(prompt: float, per_example: bool) -> None:
    # prompts of 4, 4 and 6 tokens, responses of 2, 6 and 4; and plain text, which has no prompt
    sizes = ((6, 4), (10, 4), (10, 6), (8, 0))
    examples = [([*range(20 * i, 20 * i + n)], p) for i, (n, p) in enumerate(sizes)]
    data = PackedExamples(examples, CAPACITY, EOS, 0, LossWeights(prompt, per_example))
    rows = data.rows(np.arange(data.num_rows))
    assert rows.factors is not None
    totals = []
    for r in range(data.num_rows):
        for segment in range(1, rows.segments[r].max() + 1):
            (where,) = np.nonzero(rows.segments[r] == segment)
            tokens, weights = rows.tokens[r, where], rows.factors[r, where]
            length, prompt_tokens = sizes[tokens[0] // 20]
            assert len(where) == length
            first = max(prompt_tokens, 1)
            response = weights[first - 1 : -1]
            assert len(set(response.tolist())) == 1
            assert np.allclose(weights[: first - 1], prompt)
            assert weights[-1] == 0
            counted = rows.targets[r, where] != -100
            assert (rows.targets[r, where][counted] == tokens[1:][counted[:-1]]).all()
            assert (counted == (weights > 0)).all()
            if per_example and prompt_tokens:
                assert response.sum() == pytest.approx(4.0)  # the mean length of a response
            else:
                assert (response == 1).all()
            totals.append(length)
        assert rows.factors[r].sum() == pytest.approx(data.label_counts(np.array([r]))[0])
    assert sorted(totals) == [6, 8, 10, 10]


def test_virtual_tokens_of_a_prompt_are_no_targets() -> None:
    data = PackedExamples([([90, 91, 1, 2, 3, 4, 5], 5)], 7, EOS, 0, LossWeights(0.5, False, 2))
    rows = data.rows(np.arange(1))
    assert rows.targets[0].tolist() == [-100, 1, 2, 3, 4, 5, -100]
    assert rows.factors is not None
    assert rows.factors[0].tolist() == [0, 0.5, 0.5, 0.5, 1, 1, 0]
    assert data.label_counts(np.arange(1))[0] == 3.5


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

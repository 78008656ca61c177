"""The order of the data: a permutation an epoch, from (seed, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.order import batch_ids, permute


@given(n=st.integers(1, 5000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_permute_is_a_bijection(n: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(n), n, key)), np.arange(n))


@given(n=st.integers(1, 2**62), key=st.integers(0, 2**64 - 1), data=st.data())
@settings(deadline=None)
def test_each_index_is_sent_alone_where_it_is_sent_in_company(
    n: int, key: int, data: st.DataObject
) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)))
    together = permute(indices, n, key)
    assert ((together >= 0) & (together < n)).all()
    assert together.tolist() == [int(permute(np.array([i]), n, key)[0]) for i in indices]


@given(n=st.integers(1, 200), batch=st.integers(1, 50), seed=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_no_sample_comes_twice_in_an_epoch_and_none_is_left_out(
    n: int, batch: int, seed: int
) -> None:
    steps = -(-3 * n // batch)
    order = np.concatenate([batch_ids(seed, step, batch, n) for step in range(steps)])
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = [batch_ids(seed, step, 1000, 1000).tolist() for seed in (0, 1) for step in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
def test_any_number_of_processes_shares_the_same_batch(world: int) -> None:
    batch = batch_ids(5, 11, 96, 1000)
    shared = np.concatenate([batch[rank::world] for rank in range(world)])
    assert sorted(shared) == sorted(batch)


def test_places_are_uniform() -> None:
    n, trials = 16, 4000
    counts = np.zeros((n, n))
    for key in range(trials):
        counts[np.arange(n), permute(np.arange(n), n, key)] += 1
    expected = trials / n
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 225 degrees of freedom; mean 225, standard deviation 21.
    assert 130 < chi_square < 330


def test_an_index_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="range"):
        permute(np.array([5]), 5, 0)

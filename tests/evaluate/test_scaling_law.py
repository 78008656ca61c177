"""The fit finds the constants that data were made with, and its intervals hold them."""

from __future__ import annotations

import numpy as np
import pytest

from llm.errors import UserError
from llm.evaluate import scaling_law

TRUE = scaling_law.Law(
    E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658
)  # Besiroglu et al. 2024, table 1
SIZES, TOKENS = (
    a.ravel() for a in np.meshgrid(np.geomspace(4e7, 1.6e10, 6), np.geomspace(1e9, 1e12, 6))
)


def test_constants_are_found_where_there_is_no_noise() -> None:
    found = scaling_law.fit(SIZES, TOKENS, TRUE.loss(SIZES, TOKENS))  # type: ignore[arg-type]
    for name in scaling_law.NAMES:
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=2e-3), name


def test_at_the_sizes_of_a_laptop_noise_leaves_the_prediction_of_the_next_size_within_its_interval() -> (
    None
):
    true = scaling_law.Law(E=1.5, A=60.0, B=300.0, alpha=0.28, beta=0.33)
    sizes, tokens = (
        a.ravel() for a in np.meshgrid([6e5, 1.5e6, 2.9e6, 5.3e6], [2e5, 4e5, 8e5, 1.6e6])
    )
    inside = 0
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 0.002, len(sizes))
        losses = np.asarray(true.loss(sizes, tokens)) * np.exp(noise)
        laws = scaling_law.bootstrap(sizes, tokens, losses, 30, seed)
        predicted = [float(found.loss(8.5e6, 1.6e6)) for found in laws]
        low, high = scaling_law.interval(predicted)
        assert float(scaling_law.fit(sizes, tokens, losses).loss(8.5e6, 1.6e6)) == pytest.approx(
            float(true.loss(8.5e6, 1.6e6)), rel=0.01
        )
        inside += low <= float(true.loss(8.5e6, 1.6e6)) <= high
    assert inside >= 2


def test_one_run_gone_wrong_moves_the_law_little() -> None:
    losses = np.asarray(TRUE.loss(SIZES, TOKENS)).copy()
    losses[7] *= 1.2
    assert scaling_law.fit(SIZES, TOKENS, losses).alpha == pytest.approx(TRUE.alpha, rel=0.01)


def test_the_optimum_is_the_least_loss_on_its_line_of_equal_compute() -> None:
    n, d = TRUE.optimal(1e21)
    assert 6 * n * d == pytest.approx(1e21)
    assert TRUE.exponent == pytest.approx(0.5126, abs=1e-3)
    best = TRUE.loss(n, d)
    assert all(TRUE.loss(n * f, d / f) > best for f in (0.5, 0.9, 1.1, 2.0))


def test_the_same_seed_gives_the_same_resamples() -> None:
    losses = np.asarray(TRUE.loss(SIZES, TOKENS))
    assert scaling_law.bootstrap(SIZES, TOKENS, losses, 3, 1) == scaling_law.bootstrap(
        SIZES, TOKENS, losses, 3, 1
    )


def test_runs_that_do_not_determine_a_law_are_refused() -> None:
    for chosen in (slice(0, 5), SIZES[0] == SIZES, TOKENS[0] == TOKENS):
        with pytest.raises(UserError, match=r"do not determine a law.*scaling\.depths"):
            scaling_law.fit(
                SIZES[chosen], TOKENS[chosen], np.asarray(TRUE.loss(SIZES, TOKENS))[chosen]
            )


def test_the_fewest_runs_that_determine_a_law_have_intervals_too() -> None:
    chosen = [0, 1, 8, 15, 22, 35]
    losses = np.asarray(TRUE.loss(SIZES[chosen], TOKENS[chosen])) * np.exp(
        [0.01, -0.01, 0.01, 0.0, -0.01, 0.01]
    )
    laws = scaling_law.bootstrap(SIZES[chosen], TOKENS[chosen], losses, 8, 0)
    low, high = scaling_law.interval([float(found.loss(1e11, 1e13)) for found in laws])
    assert high - low > 1e-3

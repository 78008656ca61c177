"""Bootstrap intervals are what resampling by hand gives, hold the truth as often as they say, and
are repeatable.
"""

from __future__ import annotations

import numpy as np
import pytest

from llm.evaluate import bootstrap, metrics


def test_a_resampled_bleu_is_the_bleu_of_the_resampled_corpus() -> None:
    from sacrebleu.metrics import BLEU

    rng = np.random.default_rng(1)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "off", "home"]
    predictions = [" ".join(rng.choice(words, size=rng.integers(0, 12))) for _ in range(20)]
    references = [" ".join(rng.choice(words, size=rng.integers(4, 12))) for _ in range(20)]
    measure = metrics.bleu(predictions, [[text] for text in references])
    sums = bootstrap.resampled_sums(measure.statistics, 25, seed=7)
    ours = metrics.bleu_of_sums(sums, 20)
    drawn = np.random.default_rng(7).integers(0, 20, size=(25, 20))
    for row, score in zip(drawn, ours, strict=True):
        expected = BLEU().corpus_score(
            [predictions[i] for i in row], [[references[i] for i in row]]
        )
        assert score == pytest.approx(expected.score, abs=1e-9)


def test_blocks_do_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = np.random.default_rng(0).normal(size=(30, 2))
    whole = bootstrap.resampled_sums(statistics, 50, seed=3)
    monkeypatch.setattr(bootstrap, "CELLS", 100)
    np.testing.assert_array_equal(whole, bootstrap.resampled_sums(statistics, 50, seed=3))


def test_a_95_percent_interval_holds_the_true_mean_about_19_times_in_20() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        values = rng.exponential(size=(60, 1))  # skewed, true mean 1
        low, high = bootstrap.bootstrap(
            values, lambda sums, n: sums[:, 0] / n, 400, 0.95, seed=trial
        )
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 300 <= 0.98


def test_more_confidence_is_a_wider_interval_and_the_same_seed_the_same_one() -> None:
    values = np.random.default_rng(0).normal(size=(40, 1))

    def interval(confidence: float) -> tuple[float, float]:
        return bootstrap.bootstrap(values, lambda sums, n: sums[:, 0] / n, 500, confidence, seed=1)

    narrow, wide = interval(0.8), interval(0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert interval(0.8) == narrow


def test_one_example_has_an_interval_of_no_width() -> None:
    assert metrics.mean("x", "", [0.5]).score(100, 0.95, 0)["low"] == 0.5

"""Paired tests find what scipy's and sacrebleu's find, and are right as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.evaluate import metrics
from llm.evaluate.metrics import Measure
from llm.evaluate.paired import differences, holm


def mean(values: np.ndarray, name: str = "score") -> Measure:
    return metrics.mean(name, "", values.tolist())


def test_means_are_tested_as_scipys_permutation_test_does() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    for shift in (0.0, 0.03, 0.1):
        a = rng.random(120)
        b = a + shift * rng.standard_normal(120) + shift / 5
        (found,) = differences([mean(a)], [mean(b)], 200, 0.95, 1)
        expected = stats.permutation_test(
            (b, a), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", vectorized=True,
            n_resamples=10_000, rng=2,
        )  # fmt: skip
        assert found.difference == pytest.approx(expected.statistic)
        assert found.p_value == pytest.approx(expected.pvalue, abs=0.015)


def test_few_examples_give_the_exact_p_value_of_all_swaps() -> None:
    a, b = np.array([1.0, 0.0, 0.0, 1.0, 0.0]), np.ones(5)
    (found,) = differences([mean(a)], [mean(b)], 100, 0.95, 0)
    assert found.p_value == pytest.approx(
        2 / 8, abs=0.015
    )  # three examples differ, all in one direction


def test_bleu_is_tested_as_sacrebleus_paired_tests_do() -> None:
    from sacrebleu.metrics import BLEU
    from sacrebleu.significance import PairedTest

    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    references = [" ".join(rng.choice(words, size=12)) for _ in range(60)]

    def spoiled(share: float) -> list[str]:
        return [
            " ".join(w if rng.random() > share else str(rng.choice(words)) for w in text.split())
            for text in references
        ]

    first, second = spoiled(0.30), spoiled(0.25)
    ours = (
        metrics.bleu(first, [[r] for r in references]),
        metrics.bleu(second, [[r] for r in references]),
    )
    (found,) = differences([ours[0]], [ours[1]], 2000, 0.95, 0)
    systems = [("A", first), ("B", second)]
    _, scores = PairedTest(systems, {"BLEU": BLEU(references=[references])}, None, "ar", 5000)()
    assert found.b == pytest.approx(scores["BLEU"][1].score)
    assert found.p_value == pytest.approx(scores["BLEU"][1].p_value, abs=0.03)
    assert found.low < found.difference < found.high


def test_the_interval_is_the_paired_bootstraps_of_scipy() -> None:
    from scipy import stats

    rng = np.random.default_rng(3)
    a = rng.random(200)
    b = a + 0.1 * rng.random(200)
    (found,) = differences([mean(a)], [mean(b)], 4000, 0.9, 0)
    expected = stats.bootstrap(
        (b, a), lambda x, y, axis: (x - y).mean(axis=axis), paired=True, vectorized=True, n_resamples=4000,
        confidence_level=0.9, method="percentile", rng=1,
    ).confidence_interval  # fmt: skip
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-3)


def test_equal_models_are_never_told_apart() -> None:
    values = np.random.default_rng(0).random(50)
    (found,) = differences([mean(values)], [mean(values)], 100, 0.95, 0)
    assert (found.difference, found.low, found.high, found.p_value) == (0.0, 0.0, 0.0, 1.0)


def test_models_without_a_difference_are_told_apart_as_rarely_as_stated() -> None:
    rng = np.random.default_rng(7)
    a, b = rng.random((2, 100, 40))
    columns = [f"score{i}" for i in range(100)]
    found = differences([mean(x, n) for x, n in zip(a, columns, strict=True)],
                        [mean(x, n) for x, n in zip(b, columns, strict=True)], 100, 0.95, 0)  # fmt: skip
    assert sum(d.p_value < 0.05 for d in found) <= 12, (
        "5 expected; more than 12 once in a thousand times"
    )


def test_corpus_scores_of_several_columns_and_sizes_are_compared_together() -> None:
    labels = ["a", "b", "a", "c"] * 5
    worse, better = ["a"] * 20, [*labels[:-1], "a"]
    one, two = (metrics.classification(texts, labels, "") for texts in (worse, better))
    tokens = np.full(7, 10.0)
    texts = [metrics.perplexity(tokens * rate, tokens, "") for rate in (3.0, 2.0)]
    found = {d.metric: d for d in differences([*one, texts[0]], [texts[1], *two], 100, 0.95, 0)}
    assert set(found) == {"accuracy", "mcc", "f1_macro", "perplexity"}
    assert found["mcc"].a == 0.0
    assert found["mcc"].difference > 0.8
    assert found["mcc"].p_value < 0.01
    assert (found["accuracy"].n, found["perplexity"].n) == (20, 7)
    assert found["perplexity"].difference == pytest.approx(np.exp(2) - np.exp(3))
    with pytest.raises(ValueError, match="accuracy"):
        differences(one[:1], metrics.classification(["a"], ["a"], "")[:1], 100, 0.95, 0)


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_holm_is_statsmodels_rule_written_out(p_values: list[float]) -> None:
    found = holm(p_values)
    ordered = sorted(p_values)
    adjusted = [
        min(1.0, max((len(p_values) - j) * ordered[j] for j in range(i + 1)))
        for i in range(len(p_values))
    ]
    limit = max([p for p, q in zip(ordered, adjusted, strict=True) if q <= 0.05], default=0.0)
    assert found == [p <= limit for p in p_values]


def test_the_same_seed_gives_the_same_figures() -> None:
    rng = np.random.default_rng(0)
    a, b = mean(rng.random(30)), mean(rng.random(30))
    assert differences([a], [b], 100, 0.95, 5) == differences([a], [b], 100, 0.95, 5)

"""Bootstrap percentile intervals (Efron and Tibshirani 1993, chapter 13), vectorised over
sufficient statistics.

Every metric here is a function of a sum over examples: a mean is one column, BLEU ten counts, the
Matthews correlation the marginals of the confusion matrix. A resample is then a row of how often
each example was drawn, times the matrix of statistics. Equal seed and number of examples give the
same resamples, so intervals of two models move together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

CELLS = 4_000_000  # of the draws matrix in memory at a time: 32 MB

Reduce = Callable[
    [np.ndarray, int], np.ndarray
]  # sums (resamples, k), examples -> values (resamples,)


def resampled_sums(statistics: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Return sums over draws of n examples with replacement: (resamples, k), float64.

    Args:
        statistics: (n, k), one row an example.
        resamples: number of draws.
        seed: of the draws.
    """
    n = len(statistics)
    values = np.ascontiguousarray(statistics, dtype=np.float64)
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, values.shape[1]))
    rows = max(1, CELLS // n)
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = generator.integers(0, n, size=(count, n)) + n * np.arange(count)[:, None]
        draws = np.bincount(drawn.ravel(), minlength=count * n).reshape(count, n)
        # einsum, not a matrix product: its order of sums does not depend on the number of BLAS
        # threads, so bytes do not change.
        sums[first : first + count] = np.einsum("rn,nk->rk", draws.astype(np.float64), values)
    return sums


def bootstrap(
    statistics: np.ndarray, reduce: Reduce, resamples: int, confidence: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of `reduce` over examples drawn with replacement.

    Args:
        statistics: (n, k), one row an example.
        reduce: values (resamples,) of sums (resamples, k) over n examples.
    """
    values = reduce(resampled_sums(statistics, resamples, seed), len(statistics))
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(values, [tail, 1.0 - tail])
    return float(low), float(high)

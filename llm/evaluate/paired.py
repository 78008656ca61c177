"""Paired tests of two models: approximate randomisation and the paired bootstrap.

Approximate randomisation (Noreen 1989; Riezler and Maxwell 2005) swaps the two models' results on
each example with probability 1/2. If the models do not differ, the observed difference is one of
the resulting ones. The interval of the difference comes from the paired bootstrap (Koehn 2004): both models on the same
resampled examples. Both work on the statistics of `metrics.Measure`, so that corpus scores such as
BLEU and Matthews correlation, which scipy's tests would need a slow function for, are recomputed in
each trial from sums. Where scipy.stats.permutation_test and sacrebleu's paired tests apply, they
find the same (tests/evaluate/test_paired.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from llm.evaluate.bootstrap import CELLS, resampled_sums
from llm.evaluate.metrics import Measure

TRIALS = 10_000  # of approximate randomisation; the smallest p-value is about 1 / TRIALS


@dataclass(frozen=True)
class Difference:
    """B − A of one score, with its bootstrap interval, and the two-sided p-value of no difference."""

    metric: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    p_value: float
    n: int

    def to_json(self) -> dict[str, Any]:
        """Return the values without the metric's name, with a signature."""
        values = asdict(self)
        del values["metric"]
        return values | {
            "signature": f"paired bootstrap interval|approximate randomisation, {TRIALS} trials, two-sided"
        }


def differences(
    a: Sequence[Measure], b: Sequence[Measure], resamples: int, confidence: float, seed: int
) -> list[Difference]:
    """Compare B with A in every measure that both have, over the same examples in the same order.

    Raises:
        ValueError: a measure's statistics differ in shape.
    """
    other = {measure.name: measure for measure in b}
    pairs = [(measure, other[measure.name]) for measure in a if measure.name in other]
    groups: dict[int, list[tuple[Measure, Measure]]] = {}
    for one, two in pairs:
        if one.statistics.shape != two.statistics.shape:
            raise ValueError(
                f"{one.name}: statistics of {one.statistics.shape} and {two.statistics.shape}"
            )
        groups.setdefault(len(one.statistics), []).append((one, two))
    found = {}
    for n, group in groups.items():
        # All measures of the same examples at once: one draw of swaps, and of examples, serves them
        # all.
        stacked = [
            np.concatenate([pair[side].statistics for pair in group], axis=1) for side in (0, 1)
        ]
        totals = [side.astype(np.float64).sum(axis=0) for side in stacked]
        moved = _swapped(stacked[1] - stacked[0], TRIALS, seed)
        drawn = [resampled_sums(side, resamples, seed) for side in stacked]
        start = 0
        for one, two in group:
            at = slice(start, start := start + one.statistics.shape[1])
            before, after = one.value(), two.value()
            swapped_b = two.reduce(totals[1][at] - moved[:, at], n)
            swapped_a = one.reduce(totals[0][at] + moved[:, at], n)
            # As far apart as what was seen, or nearly: sums in another order differ in their last
            # digits.
            seen = abs(after - before) * (1 - 1e-9) - 1e-15
            extreme = int((np.abs(swapped_b - swapped_a) >= seen).sum())
            tail = (1.0 - confidence) / 2.0
            spread = two.reduce(drawn[1][:, at], n) - one.reduce(drawn[0][:, at], n)
            low, high = np.quantile(spread, [tail, 1.0 - tail])
            p_value = (extreme + 1) / (
                TRIALS + 1
            )  # never 0: the observed outcome is a possible one
            found[one.name] = Difference(
                one.name, before, after, after - before, float(low), float(high), p_value, n
            )
    return [found[one.name] for one, _ in pairs]


def _swapped(change: np.ndarray, trials: int, seed: int) -> np.ndarray:
    """Return sums (trials, k) of the swapped rows of `change` (n, k), each with probability 1/2."""
    n = len(change)
    values = np.ascontiguousarray(change, dtype=np.float64)
    generator = np.random.default_rng([seed, n])
    sums = np.empty((trials, values.shape[1]))
    rows = max(1, CELLS // n)
    for first in range(0, trials, rows):
        count = min(rows, trials - first)
        bits = np.unpackbits(
            generator.integers(0, 256, size=(count, -(-n // 8)), dtype=np.uint8), axis=1
        )[:, :n]
        # Not a matrix product: see `bootstrap.resampled_sums`.
        sums[first : first + count] = np.einsum("rn,nk->rk", bits.astype(np.float64), values)
    return sums


def holm(p_values: Sequence[float], level: float = 0.05) -> list[bool]:
    """Return which differences are significant, with family-wise error `level` (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    significant = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        significant[i] = True
    return significant

"""Learning-rate schedules."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.train.schedule import learning_rate


@given(
    steps=st.integers(1, 500),
    schedule=st.sampled_from(["wsd", "cosine"]),
    warmup=st.floats(0, 0.5),
    decay=st.floats(0, 0.5),
    floor=st.floats(0, 1),
)
def test_rates_are_positive_and_never_above_the_peak(
    steps: int, schedule: str, warmup: float, decay: float, floor: float
) -> None:
    for step in range(steps):
        assert (
            0 < learning_rate(step, steps, 0.1, schedule, warmup, decay, floor) <= 0.1 * (1 + 1e-12)
        )


def test_wsd_rises_stays_and_falls_linearly() -> None:
    rates = [learning_rate(s, 100, 1.0, "wsd", 0.1, 0.2, 0.0) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert rates[10:80] == [1.0] * 70
    assert rates[80:] == pytest.approx([(100 - s) / 20 for s in range(80, 100)])


def test_cosine_falls_from_the_peak_to_the_floor() -> None:
    rates = [learning_rate(s, 1000, 1.0, "cosine", 0.0, 0.0, 0.1) for s in range(1000)]
    assert rates[0] == pytest.approx(1.0)
    assert rates[500] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert rates == sorted(rates, reverse=True)

"""The progress line tells the time that is left, whatever happened in the last interval."""

from __future__ import annotations

import pytest

from llm.runtime import progress
from llm.runtime.progress import Progress


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def test_a_slow_first_step_and_a_validation_do_not_bend_the_time_left(
    clock: Clock, capfd: pytest.CaptureFixture
) -> None:
    with Progress("pretrain", 10_000, "tok") as bar:
        clock.now += 12  # compiles
        bar.update(100)
        for _ in range(39):
            clock.now += 1
            bar.update(100)
        with bar.pause():
            clock.now += 9.5  # validates
        clock.now += 1
        bar.update(100)
        lines = capfd.readouterr().err.splitlines()
        # 40 updates in 49.5 s since the first one, 59 more to go; the last interval counted without
        # the validation.
        assert bar.seconds_left() == pytest.approx(59 * 49.5 / 40)
    assert lines[-1] == "pretrain: 4,100/10,000 (41%) · 100 tok/s · 01:13 left"
    assert " left" not in lines[0]  # one update is no rate
    assert all("100 tok/s" in line for line in lines[1:])


def test_a_resumed_run_forecasts_from_its_own_steps(clock: Clock) -> None:
    with Progress("finetune", 1000, start=900) as bar:
        for _ in range(3):
            clock.now += 2
            bar.update(10)
        assert bar.seconds_left() == pytest.approx(70 / 10 * 2)


def test_a_quiet_one_shows_nothing(clock: Clock, capfd: pytest.CaptureFixture) -> None:
    with Progress("pretrain", 100, quiet=True) as bar:
        for _ in range(10):
            clock.now += 20
            bar.update(10)
    assert capfd.readouterr().err == ""

"""Detection of a loss that diverges.

The run is not stopped: the user decides what to do.
"""

from __future__ import annotations

import math

WINDOW = 20  # steps that the average of the loss looks back, about
RISE = 0.3  # nats above its lowest average that are no noise
NOISE = 4.0  # and as many times the usual distance of two steps


class LossWatch:
    """Follows the exponential average of the loss, the lowest it was, and how far two steps usually
    are apart.
    """

    def __init__(self) -> None:
        self.average: float | None = None
        self.lowest, self.lowest_step = math.inf, 0
        self.last: float | None = None
        self.noise = 0.0  # mean distance of neighbours, which a trend hardly changes
        self.steps = 0

    def update(self, step: int, loss: float) -> str | None:
        """Take the loss of a step (nats); say what is wrong, or None where nothing is.

        The average of the last `WINDOW` steps lies above the lowest so far by more than `RISE` and
        by more than `NOISE` usual distances.
        """
        if self.average is None or self.last is None:
            self.average = self.last = loss
        weight = max(1 / WINDOW, 1 / (self.steps + 1))
        self.noise += weight * (abs(loss - self.last) - self.noise)
        self.last = loss
        self.average += weight * (loss - self.average)
        self.steps += 1
        if self.steps < WINDOW:
            return None
        if self.average < self.lowest:
            self.lowest, self.lowest_step = self.average, step
        rise = self.average - self.lowest
        if rise <= max(RISE, NOISE * self.noise):
            return None
        before = f"{self.lowest:.2f} at step {self.lowest_step}"
        return f"diverging: the loss rose from {before} to {self.average:.2f} at step {step}"

"""Progress of long work: a bar on a terminal, elsewhere one plain line per interval."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from llm.runtime import heartbeat

T = TypeVar("T")
INTERVAL = 10.0  # seconds between plain lines


class Progress:
    """A counter up to `total`; `update` takes the units done and figures such as loss="3.21".

    The time left comes from the average since the first update, so neither a slow start
    (compilation) nor a pause (a validation) distorts it. Units per second are those of the last
    interval, without its pauses.
    """

    def __init__(
        self,
        label: str,
        total: int | None,
        unit: str = "it",
        start: int = 0,
        scale: bool = False,
        quiet: bool = False,
    ) -> None:
        """`quiet`: show nothing."""
        self.label, self.total, self.unit, self.scale = label, total, unit, scale
        self.done = self.start = start
        self.began = self.printed = time.monotonic()
        self.printed_done = start
        self.paused = self.printed_paused = 0.0  # seconds
        self.first: tuple[float, int] | None = (
            None  # when the first update came, and what was done then
        )
        self.quiet, self.terminal = quiet, sys.stderr.isatty()
        self.figures = ""
        self.bar = tqdm(
            total=total,
            initial=start,
            desc=label,
            unit=unit,
            unit_scale=scale,
            disable=quiet or not self.terminal,
            leave=True,
            smoothing=0,  # the average, also of the time left
        )

    def update(self, n: int = 1, **figures: str) -> None:
        """Count `n` more units."""
        self.done += n
        if figures:
            self.figures = " · ".join(f"{key} {value}" for key, value in figures.items())
            self.bar.set_postfix_str(self.figures, refresh=False)
        self.bar.update(n)
        now = time.monotonic()
        if self.first is None:
            self.first = now, self.done
        if not self.quiet and (status := heartbeat.current()):
            status.tell(
                doing=self.label,
                done=self.done,
                total=self.total,
                unit=self.unit,
                seconds_left=self.seconds_left(),
                **figures,
            )
        if not self.terminal and now - self.printed >= INTERVAL:
            self._line(
                self.done - self.printed_done,
                now - self.printed - (self.paused - self.printed_paused),
            )
            self.printed, self.printed_done, self.printed_paused = now, self.done, self.paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the block's time from the units per second, but not from the time left."""
        began = time.monotonic()
        status = heartbeat.current()
        if status:
            status.paused = True
        yield
        if status:
            status.tell()
            status.paused = False
        self.paused += time.monotonic() - began

    def seconds_left(self) -> float | None:
        """Return the time left at the average rate; None before the second update."""
        if self.first is None or not self.total:
            return None
        began, done = self.first
        if self.done == done:
            return None
        return (self.total - self.done) * (time.monotonic() - began) / (self.done - done)

    def note(self, message: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Close the bar; without a terminal, print a last line."""
        self.bar.close()
        if not self.terminal and time.monotonic() - self.began >= 1.0:
            self._line(self.done - self.start, time.monotonic() - self.began - self.paused)

    def _line(self, done: int, seconds: float) -> None:
        if self.quiet:
            return
        rate = done / max(seconds, 1e-9)
        parts = [f"{self.label}: {_amount(self.done, self.scale)}"]
        if self.total:
            parts[0] += f"/{_amount(self.total, self.scale)} ({100 * self.done / self.total:.0f}%)"
        parts.append(f"{_amount(rate, True)} {self.unit}/s")
        if self.figures:
            parts.append(self.figures)
        if (left := self.seconds_left()) is not None and self.total and self.done < self.total:
            parts.append(f"{tqdm.format_interval(left)} left")
        print(" · ".join(parts), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(
    items: Iterable[T], label: str, total: int | None = None, unit: str = "it"
) -> Iterator[T]:
    """Iterate and show progress."""
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _amount(value: float, scale: bool) -> str:
    if not scale:
        return f"{value:,.0f}"
    return tqdm.format_sizeof(value) if value >= 1000 else f"{value:.3g}"

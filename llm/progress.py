"""Progress of long work: a bar on a terminal, one plain line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
INTERVAL = 10.0  # seconds between plain lines


class Progress:
    """Counts to `total`; `update` takes the units done and figures to show, such as loss="3.21"."""

    def __init__(self, label: str, total: int | None, unit: str = "it", start: int = 0, scale: bool = False) -> None:
        self.label, self.total, self.unit, self.scale = label, total, unit, scale
        self.done = self.start = start
        self.began = self.printed = time.monotonic()
        self.printed_done = start
        self.terminal = sys.stderr.isatty()
        self.figures = ""
        self.bar = tqdm(
            total=total, initial=start, desc=label, unit=unit, unit_scale=scale, disable=not self.terminal, leave=True
        )

    def update(self, n: int = 1, **figures: str) -> None:
        """Count `n` more units."""
        self.done += n
        if figures:
            self.figures = " · ".join(f"{key} {value}" for key, value in figures.items())
            self.bar.set_postfix_str(self.figures, refresh=False)
        self.bar.update(n)
        now = time.monotonic()
        if not self.terminal and now - self.printed >= INTERVAL:
            self._line(self.done - self.printed_done, now - self.printed)
            self.printed, self.printed_done = now, self.done

    def note(self, message: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Finish; where there is no terminal, say how it ended."""
        self.bar.close()
        if not self.terminal and time.monotonic() - self.began >= 1.0:
            self._line(self.done - self.start, time.monotonic() - self.began)

    def _line(self, done: int, seconds: float) -> None:
        rate = done / max(seconds, 1e-9)  # of the last interval, so that a slow start does not spoil the forecast
        parts = [f"{self.label}: {_amount(self.done, self.scale)}"]
        if self.total:
            parts[0] += f"/{_amount(self.total, self.scale)} ({100 * self.done / self.total:.0f}%)"
        parts.append(f"{_amount(rate, True)} {self.unit}/s")
        if self.figures:
            parts.append(self.figures)
        if self.total and self.done < self.total and rate > 0:
            parts.append(f"{tqdm.format_interval((self.total - self.done) / rate)} left")
        print(" · ".join(parts), file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def track(items: Iterable[T], label: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate and show progress."""
    with Progress(label, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _amount(value: float, scale: bool) -> str:
    if not scale:
        return f"{value:,.0f}"
    return tqdm.format_sizeof(value) if value >= 1000 else f"{value:.3g}"

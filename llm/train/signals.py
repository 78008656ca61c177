"""Ending well: a request to stop is honoured at the next step boundary."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


class StopRequest:
    """Set by SIGTERM or SIGINT. A second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            # After a request to stop, the stage still prints the step at which it stopped. Keep the
            # handler of SIGTERM until then: `end_with_dvc` sends another SIGTERM when DVC ends, and
            # the default handler would end the process before the message.
            if self.signal is None or number != signal.SIGTERM:
                signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            os.write(sys.stderr.fileno(), b"\nstopping at the next step; the state will be kept\n")
        self.signal = number

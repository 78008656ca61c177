"""The status file of a running stage: `.state/running/<stage>-<pid>.json`.

It is not an output and no stage reads it; `python -m llm status` does. A thread writes it
every few seconds. If a stage hangs, the file is still updated but its progress is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm.runtime import env
from llm.runtime.state_dirs import state_root

SECONDS = 3.0  # between two writes
STALL = 120.0  # seconds without progress that never count as a stall
# The same before the first progress (loading, compiling) and during a validation.
STALL_FIRST = 1200.0
GAPS = 10  # a stall lasts this many times the longest wait between two signs of progress so far
OK = "ok"


def folder() -> Path:
    """Return the folder of the status files of all running stages."""
    return state_root() / "running"


class Heartbeat:
    """The state that the file shows. The working thread sets it, the writing thread reads it."""

    def __init__(self, stage: str) -> None:
        self.path = folder() / f"{stage}-{os.getpid()}.json"
        self.facts: dict[str, Any] = {
            "stage": stage,
            "experiment": env.dvc_experiment(),
            "directory": os.getcwd(),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": time.time(),
        }
        self.figures: dict[str, Any] = {}
        self.trouble: str | None = None  # set by the stage itself
        self.listener: Callable[[str], None] | None = None  # called at each change of health
        self.reported = OK
        self.progressed = self.started = time.monotonic()
        self.longest = 0.0  # seconds between two signs of progress
        self.moved = self.paused = False
        self._stop = threading.Event()
        self._file = threading.Lock()  # two threads write it
        self._thread = threading.Thread(target=self._write_on, name="heartbeat", daemon=True)

    def tell(self, **figures: Any) -> None:
        """Note progress; `figures` (JSON values) replace those of the same name."""
        now = time.monotonic()
        if self.moved and not self.paused:
            self.longest = max(self.longest, now - self.progressed)
        self.progressed, self.moved = now, True
        self.figures |= figures

    def validated(self, tokens: int, loss: float) -> None:
        """Add a validation loss and write at once: a tuner may want to stop the run."""
        self.tell(validations=[*self.figures.get("validations", []), [tokens, loss]])
        self.write()

    def stalled(self) -> float | None:
        """Return the seconds since the last progress if they are too many; else None."""
        waited = time.monotonic() - self.progressed
        limit = max(STALL, GAPS * self.longest) if self.moved and not self.paused else STALL_FIRST
        return waited if waited > limit else None

    def health(self) -> str:
        """Return `ok`, or what is wrong."""
        waited = self.stalled()
        if waited is None:
            return self.trouble or OK
        doing = (
            " in a validation" if self.paused else "" if self.moved else " before the first step"
        )
        return f"stalled: no progress for {waited / 60:.0f} min{doing}"

    def start(self) -> None:
        """Begin to write the file."""
        with contextlib.suppress(OSError):  # no stage fails because its status cannot be written
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()
        self._thread.start()

    def end(self, outcome: str | None) -> None:
        """Remove the file, or leave `outcome` in it if the stage failed."""
        self._stop.set()
        self._thread.join()
        if outcome is None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        else:
            self.write(ended=outcome)

    def write(self, **more: Any) -> None:
        """Write the file now. Readers retry if they find it half-written."""
        now = time.time()
        facts = {
            **self.facts,
            "updated": now,
            "progressed": now - (time.monotonic() - self.progressed),
        }
        text = json.dumps({**facts, **self.figures, "health": self.health(), **more})
        with self._file, contextlib.suppress(OSError):  # a full disk
            self.path.write_text(text, encoding="utf-8")

    def _write_on(self) -> None:
        while not self._stop.wait(SECONDS):
            self.write()
            self.report()

    def report(self) -> None:
        """Call the listener if the health has changed, apart from the minutes of a stall."""
        health = self.health()
        if self.listener and health.split(":")[0] != self.reported.split(":")[0]:
            self.reported = health
            self.listener(health)


_current: Heartbeat | None = None


def current() -> Heartbeat | None:
    """Return the heartbeat of the stage that this process runs; None if it runs none."""
    return _current


@contextmanager
def running(stage: str) -> Iterator[Heartbeat]:
    """Show a stage as running while the block runs."""
    global _current
    _current = heartbeat = Heartbeat(stage)
    heartbeat.start()
    try:
        yield heartbeat
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        heartbeat.end(
            f"{type(error).__name__}: {first[:200]}"
            if not isinstance(error, SystemExit)
            else first[:200]
        )
        raise
    else:
        heartbeat.end(None)
    finally:
        _current = None

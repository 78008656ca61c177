"""What a running stage tells about itself: `$DVC_ROOT/.state/running/<stage>-<pid>.json`, written
every few seconds.

It is no output and no stage reads it; `python -m llm status` does. A thread writes it, so that a
stage that hangs is
told from one that works: its file goes on, its progress does not.
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
STALL = 120.0  # seconds without progress that are no stall yet, whatever the pace so far
STALL_FIRST = (
    1200.0  # before the first progress (loading, compiling) and within a pause (a validation)
)
GAPS = 10  # a stall is this many times the longest wait between two signs of progress so far
OK = "ok"


def folder() -> Path:
    """Where the files lie: the main repository, from DVC's temporary workspaces too."""
    return state_root() / "running"


class Beacon:
    """The state that the file shows. Attributes are set by the working thread and read by the
    writing one.
    """

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
        self.trouble: str | None = None  # said by the stage itself
        self.listener: Callable[[str], None] | None = None  # is told each change of health
        self.told = OK
        self.progressed = self.began = time.monotonic()
        self.longest = 0.0  # seconds between two signs of progress
        self.moved = self.paused = False
        self._stop = threading.Event()
        self._file = threading.Lock()  # two threads write it
        self._thread = threading.Thread(target=self._write_on, name="beacon", daemon=True)

    def tell(self, **figures: Any) -> None:
        """Progress was made; `figures` (JSON values) replace those of the same name."""
        now = time.monotonic()
        if self.moved and not self.paused:
            self.longest = max(self.longest, now - self.progressed)
        self.progressed, self.moved = now, True
        self.figures |= figures

    def validated(self, tokens: int, loss: float) -> None:
        """A validation loss, shown at once and beside those before it: a tuner may want to stop the
        run for it.
        """
        self.tell(validations=[*self.figures.get("validations", []), [tokens, loss]])
        self.write()

    def stalled(self) -> float | None:
        """Seconds since the last progress, where that is too long; else None."""
        waited = time.monotonic() - self.progressed
        limit = max(STALL, GAPS * self.longest) if self.moved and not self.paused else STALL_FIRST
        return waited if waited > limit else None

    def health(self) -> str:
        """`ok`, or what is wrong."""
        waited = self.stalled()
        if waited is None:
            return self.trouble or OK
        doing = (
            " in a validation" if self.paused else "" if self.moved else " before the first step"
        )
        return f"stalled: no progress for {waited / 60:.0f} min{doing}"

    def start(self) -> None:
        """Write the file, and go on doing so."""
        with contextlib.suppress(OSError):  # to be watched is a courtesy: no stage fails for it
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.write()
        self._thread.start()

    def end(self, outcome: str | None) -> None:
        """Remove the file, or leave `outcome` in it for a stage that did not come to its end."""
        self._stop.set()
        self._thread.join()
        if outcome is None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)
        else:
            self.write(ended=outcome)

    def write(self, **more: Any) -> None:
        """Write the file now. It may be read half-written: whoever reads it tries again."""
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
        """Tell the listener where the health is another than last told, minutes of a stall aside."""
        health = self.health()
        if self.listener and health.split(":")[0] != self.told.split(":")[0]:
            self.told = health
            self.listener(health)


_current: Beacon | None = None


def current() -> Beacon | None:
    """Of the stage that this process runs; None where it runs none."""
    return _current


@contextmanager
def running(stage: str) -> Iterator[Beacon]:
    """Show a stage as running for the length of the block."""
    global _current
    _current = beacon = Beacon(stage)
    beacon.start()
    try:
        yield beacon
    except BaseException as error:
        first = (str(error).strip().splitlines() or [""])[0]
        beacon.end(
            f"{type(error).__name__}: {first[:200]}"
            if not isinstance(error, SystemExit)
            else first[:200]
        )
        raise
    else:
        beacon.end(None)
    finally:
        _current = None

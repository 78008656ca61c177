"""Child processes that train side by side, one at a time: the driver gives each a slice of steps in
turn.

Each framework lives in a process of its own, with its own imports and environment, as its users
have it. While one runs its slice the others sleep on a pipe, so slices alternate within seconds of
one another and the machine's moods hit all of them alike. The driver imports nothing heavy: a
child's peak memory starts from its parent's."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Stop(BaseException):
    """Raised inside a framework's own loop when the driver has seen enough."""


class Gate:
    """The child's end: counts optimizer steps, times them, and waits between slices."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.values: list[Any] = []
        self.left = 0
        self.began = 0.0

    def begin(self) -> None:
        """Set up, but before the first step: wait for the first slice."""
        self._wait()

    def step_done(self, value: Any = None, last: bool = False) -> None:
        """After each step; records `value`, or the seconds since the last one (pauses do not
        count).

        last: the function will do no more steps, but return a result.

        Raises:
            Stop: no further slice is wanted.
        """
        self.values.append(time.perf_counter() - self.began if value is None else value)
        self.left -= 1
        if self.left <= 0 or last:
            self.connection.send(("slice", self.values, peak_memory()))
            self.values = []
            if not last:
                self._wait()
        else:
            self.began = time.perf_counter()

    def _wait(self) -> None:
        self.left = self.connection.recv()
        if not self.left:
            raise Stop
        self.began = time.perf_counter()


def peak_memory() -> int:
    """Largest resident memory of this process so far (bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def mark_optimizer_steps(gate: Gate) -> None:
    """Call `gate.step_done` after every optimizer step, whoever's loop makes it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    register_optimizer_step_post_hook(lambda *_: gate.step_done())


def _child(
    connection: Connection, log: Path, function: Callable[..., Any], arguments: dict[str, Any]
) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    try:
        result = function(Gate(connection), **arguments)
        connection.send(("end", result, peak_memory()))
    except Stop:
        connection.send(("end", None, peak_memory()))
    except BaseException as error:
        traceback.print_exc()
        last = (str(error).strip().splitlines() or [""])[-1]
        connection.send(("failed", f"{type(error).__name__}: {last[:300]} (log: {log})", 0))
        raise


class Worker:
    """The driver's end of a child that runs `function(gate, **arguments)`; what it prints goes to
    `log`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        log: Path,
        environment: dict[str, str] | None = None,
        daemon: bool = True,
        **arguments: Any,
    ) -> None:
        """daemon: ends with the driver in any case, but may have no processes of its own."""
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        log.parent.mkdir(parents=True, exist_ok=True)
        self.process = context.Process(
            target=_child, args=(theirs, log, function, arguments), daemon=daemon
        )
        before = {key: os.environ.get(key) for key in environment or {}}
        os.environ.update(environment or {})
        try:
            self.process.start()
        finally:
            for key, value in before.items():
                os.environ.pop(key) if value is None else os.environ.update({key: value})
        theirs.close()
        self.peak_memory = 0
        self.log = log

    def steps(self, count: int) -> list[Any]:
        """Let the child do `count` steps; their seconds, or the values that it gave.

        Raises:
            RuntimeError: the child failed; the message names its log.
        """
        self.connection.send(count)
        return self._answer("slice")

    def stop(self) -> None:
        """End the child, whatever step it has reached."""
        if self.process.is_alive():
            self.connection.send(0)
            self._answer("end")
        self.process.join()

    def result(self) -> Any:
        """Return the result of the function, when it has done its steps."""
        value = self._answer("end")
        self.process.join()
        return value

    def _answer(self, wanted: str) -> Any:
        try:
            kind, value, memory = self.connection.recv()
        except EOFError:
            self.process.join()
            raise RuntimeError(
                f"{self.log.stem} died with exit status {self.process.exitcode} (log: {self.log})"
            ) from None
        if kind == "failed":
            raise RuntimeError(f"{self.log.stem}: {value}")
        assert kind == wanted, f"{self.log.stem}: {kind} where {wanted} was expected"
        self.peak_memory = memory
        return value


def call(
    function: Callable[..., Any],
    log: Path,
    environment: dict[str, str] | None = None,
    **arguments: Any,
) -> Any:
    """Run `function(gate, **arguments)` in a process of its own and return what it returns."""
    return Worker(function, log, environment, **arguments).result()

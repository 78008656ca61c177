"""A pool of processes; results come in the order of the items, few of them in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import Any, TypeVar

from llm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items handed out beyond one a process, so that none waits; their results wait in memory


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that load their modules at once and get their function when it is known."""

    def __init__(self, count: int) -> None:
        """`count`: processes; 1: this one."""
        self.count = count
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            # A fresh interpreter each: a fork would copy locks that other threads (Arrow's, the
            # progress bar's) hold.
            context = multiprocessing.get_context("spawn")
            self.functions: SimpleQueue[Any] = context.SimpleQueue()
            self.pool = ProcessPoolExecutor(count, context, _start, (self.functions, os.getpid()))
            for _ in range(count):  # starts one process each, now and not with the first items
                self.pool.submit(os.getpid)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self._give(None)  # to those that still wait for their function
            self.pool.shutdown(wait=True, cancel_futures=True)

    def ordered(
        self, make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
    ) -> Iterator[Result]:
        """function(item) for each item, in order, where `make()` gives the function in each
        process; at most once.

        Args:
            make: can be pickled; what it gives need not be.

        Raises:
            UserError: a process was killed, most likely for want of memory. What a function raises
                is raised here, in its item's turn.
        """
        if self.pool is None:
            function = make()
            yield from (function(item) for item in items)
            return
        self._give(make)
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self.pool.submit(_call, item))
                if len(waiting) >= self.count + AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(
                f"one of {self.count} worker processes ended before its work was done, most likely killed for want of "
                "memory. Rerun with fewer (tokenize.workers; for the source docs `taskset -c 0`): what is done is kept."
            ) from None

    def _give(self, make: Callable[[], Any] | None) -> None:
        """Send the function's maker to each process, in a thread: a dead process takes none."""

        def put() -> None:
            for _ in range(self.count):
                self.functions.put(make)

        threading.Thread(target=put, name="give-functions", daemon=True).start()


_function: Callable[[Any], Any]


def _start(functions: SimpleQueue[Any], parent: int) -> None:
    """Make a worker process leave Ctrl-C to its parent, end with it, and use one core."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()
    import pyarrow.compute
    import pyarrow.parquet

    pyarrow.set_cpu_count(1)
    if (make := functions.get()) is not None:
        _function = make()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)

"""A function over many items in several processes, with the results in the items' order and few of them in memory."""

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
from typing import Any, TypeVar

from llm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items handed out beyond one a process, so that none waits; their results wait in memory


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered(make: Callable[[], Callable[[Item], Result]], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """function(item) for each item, in order, where `make()` gives the function in each process.

    Args:
        make: can be pickled; what it gives need not be.
        workers: processes; 1: this one.

    Raises:
        UserError: a process was killed, most likely for want of memory. What a function raises is raised here, in its
            item's turn.
    """
    if workers <= 1:
        function = make()
        yield from (function(item) for item in items)
        return
    # A fresh interpreter each: a fork would copy locks that other threads (Arrow's, the progress bar's) may hold.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(make, os.getpid()))
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(_call, item))
            if len(waiting) >= workers + AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            f"one of {workers} worker processes ended before its work was done, most likely killed for want of memory. "
            "Set tokenize.workers to fewer and rerun: it continues where it was."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any]


def _start(make: Callable[[], Callable[[Any], Any]], parent: int) -> None:
    """In each process: leave Ctrl-C to the parent, end with it, use one core."""
    global _function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), name="end-with-parent", daemon=True).start()
    import pyarrow as pa

    pa.set_cpu_count(1)
    _function = make()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _call(item: Any) -> Any:
    return _function(item)

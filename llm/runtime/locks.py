"""Lock files. The kernel frees a lock when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def try_lock(path: Path) -> BaseFileLock | None:
    """Return a lock file, held until it is released; None if another process has it.

    The file stays afterwards.

    Args:
        path: the lock file, outside of any folder that its holder may delete; its folder is made.
    """
    from filelock import FileLock, Timeout  # here: most commands need no lock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file for the length of the block.

    Args:
        path: as in `try_lock`.
        waiting: printed if another process has the lock; `{pid}` stands for that process.
    """
    lock = try_lock(path)
    if lock is None:
        from filelock import FileLock

        if waiting:
            print(waiting.format(pid=path.read_text(encoding="utf-8").strip()), flush=True)
        lock = FileLock(path)
        lock.acquire()
    try:
        path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Try to hold a lock file for the length of the block; False if another process has it."""
    lock = try_lock(path)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            lock.release()

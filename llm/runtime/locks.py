"""Lock files. The kernel frees a lock when its process ends, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold a lock file for the length of the block. The file stays afterwards.

    Args:
        path: the lock file, outside of any folder that its holder may delete; its folder is made.
        waiting: printed if another process has the lock; `{pid}` stands for that process.
    """
    from filelock import FileLock, Timeout  # here: most commands need no lock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if waiting:
            print(waiting.format(pid=path.read_text(encoding="utf-8").strip()), flush=True)
        lock.acquire()
    try:
        path.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Try to hold a lock file for the length of the block; False if another process has it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()

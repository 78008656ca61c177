"""A lock in a folder that its holder may delete: the kernel frees it when the process ends, however
it ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def held(path: Path, stage: str, does: str) -> Iterator[None]:
    """Hold the lock for the length of the block, with its folder made if need be.

    Where whoever had it removed it with its folder, the lock that is there afterwards is held.

    Args:
        does: what the holder does, for the line that says who is waited for.
    """
    while True:  # until the lock that is held is the one that is there
        with _opened(path) as file:
            if file is None:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                print(f"{stage}: process {file.read().strip()} {does}; waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _still_there(path, file):
                continue
            file.seek(0)
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
            yield
            return


@contextmanager
def _opened(path: Path) -> Iterator[TextIO | None]:
    """The file, made with its folder if need be; None where that was removed meanwhile."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (closed below)
    except (FileNotFoundError, FileExistsError):
        yield None
        return
    with file:
        yield file


def _still_there(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False

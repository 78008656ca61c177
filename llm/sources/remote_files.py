"""Local copies of remote files: resumed after an interruption, verified, renamed when complete.

An incomplete copy is `<name>.part`; `<name>.stamp` beside it holds what the server reported about
the file at the start. A later attempt, also by another process after a kill, resumes after the
bytes that are there if the server still reports the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.errors import UserError, first_line
from llm.runtime.disk import refuse_what_cannot_fit
from llm.runtime.io import write_bytes
from llm.sources.readers.paths import Input

CHUNK = 1 << 20
BLOCK = 4 << 20  # bytes of one request
ATTEMPTS = 5  # consecutive attempts without a byte before giving up
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one


def fetch(
    source: Input, folder: Path, on_bytes: Callable[[int], object] = lambda count: None
) -> Input:
    """Return a local copy of a remote file; a local file is returned unchanged.

    Args:
        folder: directory for the copies; a later attempt must use the same one.
        on_bytes: called with the number of new bytes, for progress.

    Raises:
        UserError: the file cannot be read after several attempts, differs in size from what the
            server reports, changed while it was read, or does not fit on the disk.
    """
    if source.fs is None:
        return source
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(source.title.encode()).hexdigest()[:32]
    complete, part, stamp_file = folder / name, folder / f"{name}.part", folder / f"{name}.stamp"
    stamp = _ask(source, source.stamp)
    size = _ask(source, source.size)
    if not (stamp_file.is_file() and stamp_file.read_text(encoding="utf-8") == stamp):
        complete.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        write_bytes(stamp_file, stamp.encode())
    if not complete.exists():
        missing = f"{source.title}: the bytes that are missing"
        refuse_what_cannot_fit(missing, size - _size(part), folder, "name fewer files")
        _copy(source, part, size, on_bytes)
        if _ask(source, source.stamp) != stamp:
            part.unlink()
            raise UserError(
                f"{source.title}: changed while it was downloaded. Rerun when it stays as it is."
            )
        os.replace(part, complete)
    return dataclasses.replace(source, fs=None, path=str(complete))


def _copy(source: Input, part: Path, size: int, on_bytes: Callable[[int], object]) -> None:
    """Extend `part` to `size` bytes (-1: to the end of the stream)."""
    idle, stream = 0, size < 0
    while True:
        size_now = _size(part)
        if 0 <= size <= size_now:
            break
        before, reason = size_now, "the connection ended early"
        try:
            _append(source, part, size_now, stream, on_bytes)
            if size < 0:
                break
        except OSError as error:
            if error.filename == str(part):  # the disk, not the network
                raise
            reason = first_line(error)
        except Exception as error:  # each file system has errors of its own
            stream |= isinstance(error, ValueError)  # fsspec: the server supports no ranges
            reason = first_line(error)
        size_now = _size(part)
        idle = 0 if size_now > before else idle + 1
        if idle >= ATTEMPTS:
            of = f" of {size:,}" if size >= 0 else ""
            raise UserError(
                f"{source.title}: broke off after {size_now:,}{of} bytes, {ATTEMPTS} times in a row ({reason}). "
                "Rerun when the network is back: it resumes there."
            )
        if idle:
            time.sleep(PAUSE * 2 ** (idle - 1))
    if 0 <= size < size_now:
        part.unlink()
        raise UserError(
            f"{source.title}: {size_now:,} bytes came, but the server says {size:,}. Rerun to try again."
        )


def _append(
    source: Input, part: Path, size_now: int, stream: bool, on_bytes: Callable[[int], object]
) -> None:
    """Append the bytes from `size_now` on in blocks, or the complete file as one stream."""
    with source.fs.open(source.path, "rb", block_size=0 if stream else BLOCK) as remote:
        if size_now and not stream:
            remote.seek(size_now)
        with open(part, "r+b" if size_now and not stream else "wb") as file:
            file.seek(0 if stream else size_now)
            while chunk := remote.read(CHUNK):
                file.write(chunk)
                on_bytes(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _ask(source: Input, question: Callable[[], Any]) -> Any:
    """Return the server's answer, after several attempts if needed."""
    for attempt in range(ATTEMPTS):
        try:
            source.fs.invalidate_cache()
            return question()
        except Exception as error:  # each file system has errors of its own
            reason = first_line(error)
            if isinstance(error, FileNotFoundError):
                break
            time.sleep(PAUSE * 2**attempt if attempt < ATTEMPTS - 1 else 0)
    raise UserError(
        f"{source.title}: cannot be read ({reason}). Check the address and the network, and rerun."
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0

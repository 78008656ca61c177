"""Remote files, copied here before they are read: resumed where they broke off, verified, under
their name when whole.

A copy in the making is `<name>.part`, beside it what the server said of the file when it was begun.
A later attempt, also of another process after a kill, goes on behind the bytes that are there if
the server still says the same."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.runtime.io import write_bytes
from llm.sources.readers.paths import Input

CHUNK = 1 << 20
BLOCK = 4 << 20  # bytes asked for at a time
ATTEMPTS = 5  # in a row that bring no byte
PAUSE = 1.0  # seconds before the second attempt, doubled before each further one


def fetch(
    source: Input, folder: Path, on_bytes: Callable[[int], object] = lambda count: None
) -> Input:
    """A local copy of a remote file; a local file as it is.

    Args:
        folder: for the copies; the same one in a later attempt.
        on_bytes: told how many bytes came, for progress.

    Raises:
        UserError: the file cannot be read after some attempts, is shorter or longer than the server
            says, changed while it was read, or does not fit on the disk.
    """
    if source.fs is None:
        return source
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(source.shown.encode()).hexdigest()[:32]
    whole, part, noted = folder / name, folder / f"{name}.part", folder / f"{name}.stamp"
    stamp = _asked(source, source.stamp)
    size = _asked(source, source.size)
    if not (noted.is_file() and noted.read_text(encoding="utf-8") == stamp):
        whole.unlink(missing_ok=True)
        part.unlink(missing_ok=True)
        write_bytes(noted, stamp.encode())
    if not whole.exists():
        _refuse_full_disk(source, folder, size - (part.stat().st_size if part.exists() else 0))
        _copy(source, part, size, on_bytes)
        if _asked(source, source.stamp) != stamp:
            part.unlink()
            raise UserError(
                f"{source.shown}: changed while it was downloaded. Rerun when it stays as it is."
            )
        os.replace(part, whole)
    return dataclasses.replace(source, fs=None, path=str(whole))


def _copy(source: Input, part: Path, size: int, on_bytes: Callable[[int], object]) -> None:
    """Bring `part` to `size` bytes (-1: to the end of what comes)."""
    idle, stream = 0, size < 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if 0 <= size <= have:
            break
        before, reason = have, "the connection ended early"
        try:
            _append(source, part, have, stream, on_bytes)
            if size < 0:
                break
        except OSError as error:
            if error.filename == str(part):  # the disk, not the network
                raise
            reason = _first_line(error)
        except Exception as error:  # each file system has errors of its own
            stream |= isinstance(error, ValueError)  # as fsspec says that a server knows no ranges
            reason = _first_line(error)
        have = part.stat().st_size if part.exists() else 0
        idle = 0 if have > before else idle + 1
        if idle >= ATTEMPTS:
            of = f" of {size:,}" if size >= 0 else ""
            raise UserError(
                f"{source.shown}: broke off after {have:,}{of} bytes, {ATTEMPTS} times in a row ({reason}). "
                "Rerun when the network is back: it goes on from there."
            )
        if idle:
            time.sleep(PAUSE * 2 ** (idle - 1))
    if 0 <= size < have:
        part.unlink()
        raise UserError(
            f"{source.shown}: {have:,} bytes came, but the server says {size:,}. Rerun to try again."
        )


def _append(
    source: Input, part: Path, have: int, stream: bool, on_bytes: Callable[[int], object]
) -> None:
    """Append what comes from byte `have` on, block by block; as one stream, from the beginning."""
    with source.fs.open(source.path, "rb", block_size=0 if stream else BLOCK) as remote:
        if have and not stream:
            remote.seek(have)
        with open(part, "r+b" if have and not stream else "wb") as file:
            file.seek(0 if stream else have)
            while chunk := remote.read(CHUNK):
                file.write(chunk)
                on_bytes(len(chunk))
            file.flush()
            os.fsync(file.fileno())


def _asked(source: Input, question: Callable[[], Any]) -> Any:
    """The server's answer, after some attempts."""
    for attempt in range(ATTEMPTS):
        try:
            source.fs.invalidate_cache()
            return question()
        except Exception as error:  # each file system has errors of its own
            reason = _first_line(error)
            if isinstance(error, FileNotFoundError):
                break
            time.sleep(PAUSE * 2**attempt if attempt < ATTEMPTS - 1 else 0)
    raise UserError(
        f"{source.shown}: cannot be read ({reason}). Check the address and the network, and rerun."
    )


def _refuse_full_disk(source: Input, folder: Path, missing: int) -> None:
    free = shutil.disk_usage(folder).free
    if missing > free:
        raise UserError(
            f"{source.shown}: {missing:,} bytes are still to come, but {folder} has room for {free:,}. Free some space."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

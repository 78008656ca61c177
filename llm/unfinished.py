"""Unfinished work of a stage that does not train: kept outside DVC's outputs, so that a killed stage continues it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from llm.io import write_bytes


@contextmanager
def unfinished(stage: str, inputs: dict[str, Any]) -> Iterator[Path]:
    """`$DVC_ROOT/.state/<stage>/<fingerprint of inputs>/`, held by one process at a time.

    It holds what an earlier, killed process left there, and is removed when the block ends without an error.

    Args:
        inputs: JSON values by name: all that the work depends on.
    """
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    directory = Path(os.environ.get("DVC_ROOT", ".")) / ".state" / stage / name
    with _held(directory / "lock", stage):
        write_bytes(directory / "inputs.json", json.dumps(inputs, indent=2, sort_keys=True).encode())
        for stale in directory.parent.glob(f".{name}.*"):  # its owner was killed while removing it, or removes it now
            shutil.rmtree(stale, ignore_errors=True)
        yield directory
        done = tempfile.mkdtemp(prefix=f".{name}.", dir=directory.parent)
        os.replace(directory, done)  # at once: who waits for the lock makes the folder anew
        shutil.rmtree(done, ignore_errors=True)


@contextmanager
def _held(path: Path, stage: str) -> Iterator[None]:
    """Hold the lock at `path`; where its holder removed it with its folder, the one that is there afterwards."""
    while True:  # until the lock that is held is the one that is there
        with _opened(path) as file:
            if file is None:
                continue
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                print(f"{stage}: process {file.read().strip()} does the same work; waiting for it", flush=True)
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

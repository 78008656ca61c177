"""Finished data sets, which stay outside DVC's outputs until all are: a killed download makes each
only once.
"""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def finished_work() -> Iterator[Path]:
    """The place of finished data sets, held by one process at a time."""
    root = Path(os.environ.get("DVC_ROOT", ".")) / ".state"
    root.mkdir(parents=True, exist_ok=True)
    with open(root / "download.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("download: waiting for another download of this repository to end", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield root / "download"


def forget_others(directory: Path) -> None:
    """Remove what broke off of the data set under other params, code or files: nothing will go on
    with it.
    """
    name = directory.name[:-16]  # without the fingerprint
    for other in directory.parent.glob(f"{glob.escape(name)}{'[0-9a-f]' * 16}"):
        if other != directory and not (other / "manifest.json").exists():
            shutil.rmtree(other)
            other.with_name(f"{other.name}.part.json").unlink(missing_ok=True)

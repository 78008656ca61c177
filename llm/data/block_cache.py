"""Blocks of remote files on this machine's disk, under a limit of bytes that the processes of a run
keep together.

fsspec's own caches keep whole files or sparse ones, forget by age alone, and its `blockcache` is
for one process and one thread (its documentation and fsspec/implementations/cached.py, 2026.9).
Here a block is a file, written beside and renamed, so that any process may read, write or delete
any of them at any time."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

SLACK = 0.1  # of the limit: what all processes together may write between two looks at the folder
# Names of blocks, and of what a killed process left of one: the user may have other files in the
# folder.
BLOCK = re.compile(r"[0-9a-f]{32}/\d+(\.\d+\.\d+\.tmp)?")
KEPT = 0.8  # of the limit: what is left when blocks had to go


class BlockCache:
    """Blocks by name (`<32 hexadecimal digits of its file>/<number>`). The oldest go first.

    Rows come in random order over the whole corpus, so the block read last is no likelier to be
    read next than any other; to note the times of reading would buy nothing.
    """

    def __init__(self, folder: Path, limit: int, processes: int) -> None:
        """
        Args:
            limit: bytes of all blocks in the folder.
            processes: how many of this run use the folder.
        """
        self.folder, self.limit, self.share = folder, limit, SLACK * limit / processes
        self._written, self._lock = 0.0, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._trim()

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str, start: int, length: int) -> bytes | None:
        """Bytes start … start+length of a block; None where it is not here."""
        try:
            with open(self.folder / name, "rb", buffering=0) as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Keep a block, and make room for the next ones. One that is larger than the limit allows
        is not kept.

        No fsync: what a power cut leaves of a block is told by its digest.
        """
        if len(data) > self.share:
            return
        with self._lock:
            self._written += len(data)
            if self._written > self.share:
                self._trim()
                self._written = len(data)
        path = self.folder / name
        temporary = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except FileNotFoundError:  # another process deleted it, or its folder, between the two
            return
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Forget a block."""
        (self.folder / name).unlink(missing_ok=True)

    def _trim(self) -> None:
        """Where the next writes might pass the limit, delete the oldest blocks.

        After a look at the folder there is at most (1 - SLACK) of the limit, and until the next one
        no process writes
        more than its share of SLACK: so the limit holds at every moment.
        """
        found = []
        for path in self.folder.glob("*/*"):
            if not BLOCK.fullmatch(path.relative_to(self.folder).as_posix()):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        if total <= (1 - SLACK) * self.limit:
            return
        for _, size, path in sorted(found):
            if total <= KEPT * self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size

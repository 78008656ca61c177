"""Cache of blocks of remote files on the local disk, with one limit for all processes of a run.

fsspec's own caches keep whole or sparse files and evict by age alone, and its `blockcache` is for
one process and one thread (its documentation and fsspec/implementations/cached.py, 2026.9). Here a
block is a file that is written under another name and renamed, so any process may read, write or
delete any block at any time.
"""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

SLACK = 0.1  # share of the limit that all processes may write between two scans of the folder
# Names of blocks and of their temporary files; the folder may also hold files of the user.
BLOCK = re.compile(r"[0-9a-f]{32}/\d+(\.\d+\.\d+\.tmp)?")
KEPT = 0.8  # share of the limit that stays after an eviction


class BlockCache:
    """Blocks by name (`<32 hexadecimal digits of its file>/<number>`); the oldest go first.

    Rows are in random order over the whole corpus, so the block read last is no likelier to be read
    next than any other. Times of reading are therefore not recorded.
    """

    def __init__(self, folder: Path, limit: int, processes: int) -> None:
        """Create the folder and evict what exceeds the limit.

        Args:
            folder: folder of the blocks.
            limit: bytes of all blocks in the folder.
            processes: processes of this run that use the folder.
        """
        self.folder, self.limit, self.share = folder, limit, SLACK * limit / processes
        self._written, self._lock = 0.0, threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._trim()

    def __contains__(self, name: str) -> bool:
        return (self.folder / name).exists()

    def read(self, name: str, start: int, length: int) -> bytes | None:
        """Return bytes start … start+length of a block; None if it is not cached."""
        try:
            with open(self.folder / name, "rb", buffering=0) as file:
                file.seek(start)
                return file.read(length)
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Cache a block, after an eviction if needed; skip a block larger than the share.

        It is not flushed to the disk: its digest shows if a power cut damaged it.
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
        """Delete a block."""
        (self.folder / name).unlink(missing_ok=True)

    def _trim(self) -> None:
        """Delete the oldest blocks if the next writes could exceed the limit.

        After a scan at most (1 - SLACK) of the limit is left, and no process writes more than its
        share of SLACK until the next scan, so the limit always holds.
        """
        blocks = []
        for path in self.folder.glob("*/*"):
            if not BLOCK.fullmatch(path.relative_to(self.folder).as_posix()):
                continue
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            blocks.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in blocks)
        if total <= (1 - SLACK) * self.limit:
            return
        for _, size, path in sorted(blocks):
            if total <= KEPT * self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size

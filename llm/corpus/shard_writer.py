"""Writer of token shards: `.npy` files of a set length that grow, and that resume after a kill."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.runtime.io import sha256


class ShardWriter:
    """Appends ids to `<split>-NNNNN.npy` files of `shard_tokens` each; the last may be shorter.

    Ids go straight to the file, so memory does not grow with `shard_tokens`.
    """

    def __init__(
        self,
        directory: Path,
        split: str,
        dtype: np.dtype,
        shard_tokens: int,
        position: dict[str, Any] | None = None,
    ) -> None:
        """Open the writer, at the start or at a saved position.

        Args:
            directory: folder of the shards.
            split: first part of their names.
            dtype: type of the ids.
            shard_tokens: ids of a full shard.
            position: what `sync` returned; ids after it are discarded.

        Raises:
            ValueError: the files do not hold what `position` says.
        """
        self.directory, self.split, self.dtype, self.shard_tokens = (
            directory,
            split,
            dtype,
            shard_tokens,
        )
        self.shards: list[dict[str, Any]] = []  # finished: file, tokens, sha256
        self.filled = 0  # tokens of the unfinished shard
        self.file: BinaryIO | None = None
        if position is not None:
            self._resume(position["shards"], position["filled"])

    def add(self, ids: np.ndarray) -> None:
        """Append (n,) token ids."""
        array = np.ascontiguousarray(ids, dtype=self.dtype)
        while len(array):
            if self.file is None:
                self.file = open(self._path(), "wb")  # noqa: SIM115 (closed by _finish)
                self._header(0)
            part = array[: self.shard_tokens - self.filled]
            self.file.write(part.data)
            self.filled += len(part)
            array = array[len(part) :]
            if self.filled == self.shard_tokens:
                self._finish()

    def sync(self) -> dict[str, Any]:
        """Flush the unfinished shard to the disk; return the position to resume from.

        Finished shards are not flushed: their digests show if a power cut damaged them.
        """
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
        return {"shards": list(self.shards), "filled": self.filled}

    def close(self) -> list[dict[str, Any]]:
        """Finish the last shard; return file, tokens and sha256 of each."""
        if self.file is not None:
            self._finish()
        return self.shards

    def _resume(self, shards: list[dict[str, Any]], filled: int) -> None:
        for shard in shards:
            path = self.directory / shard["file"]
            if not path.is_file() or sha256(path) != shard["sha256"]:
                raise ValueError(f"{path} is not what was written")
        self.shards = list(shards)
        if not filled:
            return
        self.file = open(self._path(), "r+b")  # noqa: SIM115 (closed by _finish)
        self._header(filled)
        end = self.file.tell() + filled * self.dtype.itemsize
        if self.file.seek(0, os.SEEK_END) < end:
            self.file.close()
            raise ValueError(f"{self._path()} is shorter than what was written")
        self.file.truncate(end)
        self.file.seek(end)
        self.filled = filled

    def _path(self) -> Path:
        return self.directory / f"{self.split}-{len(self.shards):05d}.npy"

    def _header(self, tokens: int) -> None:
        """Write the .npy header; NumPy pads it, so the length can be overwritten in place later."""
        assert self.file is not None
        self.file.seek(0)
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (tokens,),
        }
        np.lib.format.write_array_header_1_0(self.file, header)

    def _finish(self) -> None:
        assert self.file is not None
        self._header(self.filled)
        self.file.close()
        self.file, path = None, self._path()
        self.shards.append({"file": path.name, "tokens": self.filled, "sha256": sha256(path)})
        self.filled = 0

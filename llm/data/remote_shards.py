"""Token shards on a remote file system, read in blocks before they are needed and cached on disk.

    LLM_TOKENS_URL       folder that `python -m llm tokens push` wrote: s3://…, gs://…, file://…
    LLM_TOKENS_CACHE     local folder of the blocks; ~/.cache/llm/tokens
    LLM_TOKENS_CACHE_GB  its limit in 10^9 bytes; 20

A shard in data/tokens is read there; a missing one is read at the address. data/tokens/meta.json
decides: its digest names the folder at the address, and blocks.json there must repeat the digests of
its shards. blocks.json also holds a digest for each block. A block is compared with it when it
arrives, and again when it is first read from the cache.

Shards are read in blocks because rows are drawn at random from all shards, so the first batches
alone would need every shard whole. A block has 256 KiB because S3 takes 0.1 to 0.2 s to answer any
request, and a connection carries ten times as much in that time. Larger blocks would save no time
and cost more traffic for each row of some kilobytes (docs/SCALE.md).
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import queue
import threading
from concurrent.futures import Future
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llm.data.block_cache import BlockCache
from llm.errors import UserError
from llm.runtime import env
from llm.runtime.io import read_json, sha256
from llm.runtime.remote_fs import CONNECTIONS, Address

BLOCK = 1 << 18  # bytes
DIGEST = 16  # bytes of a block's digest (BLAKE2b)
# Most rows whose blocks are fetched ahead: 128 MiB, some seconds of a fast GPU.
ROWS_AHEAD = 512
INDEX = "blocks.json"
FOLDER, GIGABYTES = "~/.cache/llm/tokens", 20.0


class Blocks(NamedTuple):
    """A shard's entry in `blocks.json`."""

    file: str
    sha256: str
    bytes: int
    digests: str  # digests of its blocks, in hexadecimal, joined


def digest(block: bytes) -> str:
    """Return the digest of a block in hexadecimal."""
    return hashlib.blake2b(block, digest_size=DIGEST).hexdigest()


def remote_folder(address: Address, directory: Path) -> str:
    """Return the folder for these tokens at an address, named by the digest of meta.json."""
    return posixpath.join(address.root, sha256(directory / "meta.json")[:16])


def from_environment(directory: Path) -> RemoteTokens | None:
    """Return the shards at LLM_TOKENS_URL; None if it is not set.

    Raises:
        UserError: a variable is invalid, or the address has other tokens than
            `directory`/meta.json describes.
    """
    url = env.tokens_url()
    if not url:
        return None
    limit = env.tokens_cache_gb(GIGABYTES)
    folder = env.tokens_cache(FOLDER)
    return _connected(url, directory, sha256(directory / "meta.json"), folder, int(limit * 1e9))


@cache  # one connection for both splits
def _connected(url: str, directory: Path, _manifest: str, folder: Path, limit: int) -> RemoteTokens:
    return RemoteTokens(url, directory, folder, limit)


class RemoteTokens:
    """Shards at an address that one meta.json describes; threads may share it."""

    def __init__(self, url: str, directory: Path, folder: Path, limit: int) -> None:
        """Raise UserError if the address does not answer or has other tokens."""
        self.address = Address(url, "LLM_TOKENS_URL")
        self.root = remote_folder(self.address, directory)
        self.block, self.shards = self._index(directory)
        processes = env.local_world_size()
        try:
            self.cache = BlockCache(folder, limit, processes)
        except OSError as error:
            raise UserError(
                f"LLM_TOKENS_CACHE={folder}: {error.strerror}; name a folder on this disk."
            ) from None
        if env.rank() == 0:
            size = sum(shard.bytes for shard in self.shards.values())
            print(
                f"tokens: {size / 1e9:.2f} GB at {self.address.url}, up to {limit / 1e9:g} GB of them in {folder}",
                flush=True,
            )
        # Blocks that are fetched ahead must not push one another out before they are read.
        self.rows_ahead = min(ROWS_AHEAD, limit // (4 * self.block * processes))
        self._coming: dict[tuple[str, int], Future[bytes]] = {}
        self._lock = threading.Lock()
        self._asked: queue.SimpleQueue[tuple[RemoteShard, int, Future[bytes]]] = queue.SimpleQueue()
        # Daemon threads, so the process can end while the remote does not answer.
        for _ in range(CONNECTIONS):
            threading.Thread(target=self._fetch_asked, name="tokens", daemon=True).start()

    def shard(self, file: str, tokens: int, dtype: np.dtype) -> RemoteShard:
        """Return a shard that reads like an array."""
        return RemoteShard(self, self.shards[file], tokens, dtype)

    def ask(self, shard: RemoteShard, number: int) -> Future[bytes]:
        """Return the future of a block, which another thread fetches and caches."""
        key = shard.blocks.sha256, number
        with self._lock:
            if (future := self._coming.get(key)) is None:
                future = self._coming[key] = Future()
                self._asked.put((shard, number, future))
        return future

    def _fetch_asked(self) -> None:
        while True:
            shard, number, future = self._asked.get()
            try:
                data = self._fetch(shard, number)
            except Exception as error:  # raised again where the block is used
                future.set_exception(error)
            else:
                future.set_result(data)
            with self._lock:
                del self._coming[shard.blocks.sha256, number]

    def _fetch(self, shard: RemoteShard, number: int) -> bytes:
        """Raise UserError if the remote does not answer or has other bytes."""
        path, start = posixpath.join(self.root, shard.blocks.file), number * self.block
        stop = min(start + self.block, shard.blocks.bytes)
        for _ in range(2):  # damage in transit rarely happens twice
            data: bytes = self._read(path, start, stop)
            if shard.is_sound(number, data):
                self._keep(shard.name(number), data)
                return data
        raise UserError(
            f"{self.address.url}: {shard.blocks.file} is not what data/tokens/meta.json describes: bytes {start:,} to "
            f"{stop:,} were changed since they were put there. Delete {path} there and run "
            f"`python -m llm tokens push {self.address.url}` where data/tokens is whole."
        )

    def _keep(self, name: str, data: bytes) -> None:
        try:
            self.cache.write(name, data)
        except OSError as error:
            raise UserError(
                f"LLM_TOKENS_CACHE={self.cache.folder} could not be written ({error.strerror}). Free some space, or "
                f"set LLM_TOKENS_CACHE_GB below {self.cache.limit / 1e9:g}."
            ) from None

    def _read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Raise UserError if the remote does not answer or lacks the file."""

        def read() -> bytes:
            try:
                return self.address.fs.cat_file(path, start=start, end=stop)  # type: ignore[no-any-return]
            except FileNotFoundError:
                raise UserError(
                    f"LLM_TOKENS_URL={self.address.url}: {path} is not there. Run `python -m llm tokens push "
                    f"{self.address.url}` where data/tokens is whole."
                ) from None
            except PermissionError as error:
                raise UserError(
                    f"LLM_TOKENS_URL={self.address.url}: {path} may not be read ({error})."
                ) from None

        remedy = (
            "Fix the connection and run the same command again: it resumes from the last state."
        )
        return self.address.require(read, "does not answer", remedy)

    def _index(self, directory: Path) -> tuple[int, dict[str, Blocks]]:
        """Read the bytes of a block, and the blocks of each shard."""
        path = posixpath.join(self.root, INDEX)
        manifest = read_json(directory / "meta.json")
        try:
            index: dict[str, Any] = json.loads(self._read(path))
            block, shards = int(index["block"]), {s["file"]: Blocks(**s) for s in index["shards"]}
            expected = {
                s["file"]: s["sha256"]
                for split in ("train", "val")
                for s in manifest[split]["shards"]
            }
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.address.url}: {path} is not what `python -m llm tokens push` writes ({type(error).__name__}: "
                f"{error}). Delete it, and push again where data/tokens is whole."
            ) from None
        for file, wanted in expected.items():
            if file not in shards or shards[file].sha256 != wanted:
                raise UserError(
                    f"{self.address.url}: {path} has another {file} than {directory}/meta.json."
                )
        return block, shards


class RemoteShard:
    """A shard at the address, which can be sliced like its array."""

    def __init__(self, remote: RemoteTokens, blocks: Blocks, tokens: int, dtype: np.dtype) -> None:
        self.remote, self.blocks, self.tokens, self.dtype = remote, blocks, tokens, dtype
        self.header = blocks.bytes - tokens * dtype.itemsize
        # 1 for each block that this process has compared with its digest
        self.sound = bytearray(-(-blocks.bytes // remote.block))

    def __len__(self) -> int:
        return self.tokens

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(self.tokens)
        first, last = self._bytes(start), self._bytes(max(start, stop))
        size = self.remote.block
        numbers = self._numbers(start, stop)
        if len(numbers) > 1:
            self.ahead(start, stop)  # fetch all at once
        parts = [
            self._part(n, max(first - n * size, 0), min(last - n * size, size)) for n in numbers
        ]
        return np.frombuffer(b"".join(parts), self.dtype)

    def ahead(self, start: int, stop: int) -> None:
        """Start to fetch the blocks with tokens start … stop that are not cached."""
        for number in self._numbers(start, stop):
            if self.name(number) not in self.remote.cache:
                self.remote.ask(self, number)

    def name(self, number: int) -> str:
        """Return a block's name in the cache."""
        return f"{self.blocks.sha256[:32]}/{number}"

    def is_sound(self, number: int, data: bytes) -> bool:
        """Return True if these are the bytes of the block."""
        hexadecimal = 2 * DIGEST
        expected = self.blocks.digests[number * hexadecimal : (number + 1) * hexadecimal]
        self.sound[number] = digest(data) == expected
        return bool(self.sound[number])

    def _bytes(self, token: int) -> int:
        return self.header + token * self.dtype.itemsize

    def _numbers(self, start: int, stop: int) -> range:
        """Return the numbers of the blocks with tokens start … stop."""
        if stop <= start:
            return range(0)
        return range(
            self._bytes(start) // self.remote.block, -(-self._bytes(stop) // self.remote.block)
        )

    def _part(self, number: int, start: int, stop: int) -> bytes:
        """Return bytes start … stop of a block, from the cache or, if it fails there, the remote."""
        cache, name = self.remote.cache, self.name(number)
        if self.sound[number]:
            part = cache.read(name, start, stop - start)
        else:
            whole = cache.read(name, 0, self.remote.block)
            if whole is not None and not self.is_sound(number, whole):
                cache.delete(name)
                whole = None
            part = None if whole is None else whole[start:stop]
        if part is None or len(part) < stop - start:
            part = self.remote.ask(self, number).result()[start:stop]
        return part

"""Token shards: 1-D `.npy` files that are memory-mapped, every document followed by the end token.

`llm.corpus.encode` writes them. Shards that are not on this disk are read from `LLM_TOKENS_URL`
(`llm.data.remote_shards`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.errors import UserError
from llm.runtime import env
from llm.runtime.io import read_json, sha256

if TYPE_CHECKING:
    from llm.data.remote_shards import RemoteTokens


def check_tokenizer(tokens: Path, model: Path, stage: str) -> None:
    """Raise UserError if the shards in `tokens` were made with another tokenizer than `model`'s."""
    path = model / "tokenizer.json"
    if not path.exists():
        raise UserError(
            f"{path}: no such file. Run `dvc repro` to make it, or copy the checkpoint's."
        )
    if read_json(tokens / "meta.json").get("tokenizer_sha256") != sha256(path):
        remedy = f"Set tokenize.tokenizer=pretrained and tokenize.origin={model}, and run `dvc repro` again."
        # The pipeline makes these two with data/tokens, or from them.
        if model.as_posix() in ("data/tokenizer", "models/base"):
            remedy = "Run `dvc repro`, which makes what is out of date of the two."
        raise UserError(f"{stage}: {tokens} was not made with the tokenizer of {model}. {remedy}")


class TokenStream:
    """The shards of one split as one sequence of token ids, memory-mapped or remote."""

    def __init__(self, directory: str | Path, split: str) -> None:
        """Open the shards.

        Args:
            directory: data/tokens.
            split: train or val.

        Raises:
            UserError: a file is missing, truncated, or of another type than meta.json says.
        """
        directory = Path(directory)
        again = "Run `dvc repro -sf tokenize` to write it again."
        meta = read_json(directory / "meta.json")
        try:
            entry, self.dtype = meta[split], np.dtype(meta["dtype"])
            self.eos_id, self.vocab_size = int(meta["eos_id"]), int(meta["vocab_size"])
            self.bytes, self.documents = int(entry["bytes"]), int(entry["documents"])
            files = [(directory / shard["file"], int(shard["tokens"])) for shard in entry["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{directory / 'meta.json'} does not describe {split} shards ({type(error).__name__}: {error}). {again}"
            ) from None
        self.shards: list[Any] = []  # arrays or RemoteShard: both have a length and slices
        self.rows_ahead = 0  # rows to announce with `ahead` before they are read
        missing = {path for path, _ in files if not path.exists()}
        remote = _remote_tokens(directory) if missing else None
        for path, tokens in files:
            if remote and path in missing:
                self.shards.append(remote.shard(path.name, tokens, self.dtype))
                self.rows_ahead = remote.rows_ahead
                continue
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise UserError(
                    f"{path}: no such file. {again} Or set LLM_TOKENS_URL where the shards were pushed to."
                ) from None
            except (ValueError, OSError, EOFError) as error:
                raise UserError(f"{path} cannot be read ({error}). {again}") from None
            if array.dtype != self.dtype or array.shape != (tokens,):
                raise UserError(
                    f"{path}: {array.shape} of {array.dtype}, but meta.json says ({tokens},) of {self.dtype}. {again}"
                )
            self.shards.append(array)
        self.ends = np.cumsum([len(shard) for shard in self.shards])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def read(self, start: int, length: int) -> np.ndarray:
        """Return token ids start … start+length, (length,), across the borders of shards.

        Raises:
            IndexError: the stream is shorter.
        """
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} … {start + length} of {len(self)}")
        parts = [
            self.shards[shard][first:last] for shard, first, last in self._spans(start, length)
        ]
        return (
            np.asarray(parts[0])
            if len(parts) == 1
            else np.concatenate([np.empty(0, self.dtype), *parts])
        )

    def ahead(self, start: int, length: int) -> None:
        """Announce that these tokens will be read soon, so that remote ones are fetched ahead."""
        for shard, first, last in self._spans(start, length):
            if not isinstance(self.shards[shard], np.ndarray):
                self.shards[shard].ahead(first, last)

    def _spans(self, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield shard, first and last offset in it, of tokens start … start+length."""
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while length > 0:
            before = int(self.ends[shard - 1]) if shard else 0
            last = min(start + length, int(self.ends[shard]))
            yield shard, start - before, last - before
            start, length, shard = last, length - (last - start), shard + 1

    def documents_ids(self, chunk: int = 1 << 20) -> Iterator[np.ndarray]:
        """Yield each document's ids without the end token; only end tokens mark the borders."""
        rest = np.zeros(0, dtype=np.int64)
        for start in range(0, len(self), chunk):
            ids = np.concatenate(
                (rest, self.read(start, min(chunk, len(self) - start)).astype(np.int64))
            )
            pieces = np.split(ids, np.flatnonzero(ids == self.eos_id) + 1)
            for piece in pieces[:-1]:
                yield piece[:-1]
            rest = pieces[-1]
        if len(rest):
            yield rest


def _remote_tokens(directory: Path) -> RemoteTokens | None:
    """Return the shards at `LLM_TOKENS_URL`; None if it is not set."""
    if not env.tokens_url():
        return None
    from llm.data import remote_shards

    return remote_shards.from_environment(directory)

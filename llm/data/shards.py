"""Token shards: 1-D `.npy` files that are memory-mapped, every document followed by the end token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.data.tokenizer import Tokenizer
from llm.errors import UserError
from llm.io import read_json, sha256, write_json

BATCH_CHARACTERS = 4_000_000  # of text encoded at a time: what bounds the memory


def is_validation(text: str, val_fraction: float) -> bool:
    """Whether a document is held out: a hash of its text alone, so adding documents never moves old ones across."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < val_fraction * 2**64


class ShardWriter:
    """Appends token ids to `<split>-NNNNN.npy` files of `shard_tokens` each (the last may be shorter).

    Ids go to the file as they come, so memory does not grow with `shard_tokens`.
    """

    def __init__(self, directory: Path, split: str, dtype: np.dtype, shard_tokens: int) -> None:
        self.directory, self.split, self.dtype, self.shard_tokens = directory, split, dtype, shard_tokens
        self.filled = self.tokens = self.documents = self.bytes = 0
        self.shards: list[dict[str, Any]] = []
        self.file: BinaryIO | None = None

    def add(self, ids: list[int], text_bytes: int) -> None:
        """Append one document; `ids` ends with the end token."""
        array = np.array(ids, dtype=self.dtype)
        self.tokens += len(array)
        self.documents += 1
        self.bytes += text_bytes
        while len(array):
            if self.file is None:
                self.file = open(self._path(), "wb")  # noqa: SIM115 (closed by _finish)
                self._header(0)
            part = array[: self.shard_tokens - self.filled]
            self.file.write(part.tobytes())
            self.filled += len(part)
            array = array[len(part) :]
            if self.filled == self.shard_tokens:
                self._finish()

    def close(self) -> dict[str, Any]:
        """Finish the last shard; return the split's entry of meta.json."""
        if self.file is not None:
            self._finish()
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes, "shards": self.shards}

    def _path(self) -> Path:
        return self.directory / f"{self.split}-{len(self.shards):05d}.npy"

    def _header(self, tokens: int) -> None:
        """The .npy header; NumPy pads it so that the first dimension can be filled in afterwards, in its place."""
        assert self.file is not None
        self.file.seek(0)
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (tokens,)}
        np.lib.format.write_array_header_1_0(self.file, described)

    def _finish(self) -> None:
        assert self.file is not None
        self._header(self.filled)
        self.file.close()
        self.file, path = None, self._path()
        self.shards.append({"file": path.name, "tokens": self.filled, "sha256": sha256(path)})
        self.filled = 0


def write_shards(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    directory: Path,
    val_fraction: float,
    shard_tokens: int,
    min_train_tokens: int = 1,
) -> Iterator[list[tuple[str, list[int]]]]:
    """Write train and val shards and meta.json; yields each batch of (split, ids) for statistics as it goes.

    Raises:
        UserError: no text on one of the two sides, or fewer training tokens than one sequence takes.
    """
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    writers = {split: ShardWriter(directory, split, dtype, shard_tokens) for split in ("train", "val")}
    for batch in text_batches(documents):
        done = []
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            split = "val" if is_validation(text, val_fraction) else "train"
            ids.append(tokenizer.eos_id)
            writers[split].add(ids, len(text.encode("utf-8", "replace")))
            done.append((split, ids))
        yield done
    meta = {split: writer.close() for split, writer in writers.items()}
    for split, other in (("train", "lower"), ("val", "raise")):
        if not meta[split]["tokens"]:
            raise UserError(
                f"tokenize: no document fell on the {split} side of {sum(m['documents'] for m in meta.values())}; "
                f"add documents (download.pretrain) or {other} tokenize.val_fraction."
            )
    if (found := meta["train"]["tokens"]) < min_train_tokens:
        raise UserError(
            f"tokenize: {found} training tokens are fewer than one sequence of {min_train_tokens}; "
            "add text (download.pretrain) or lower pretrain.sequence_length."
        )
    write_json(
        directory / "meta.json",
        {
            "dtype": dtype.name,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
            "val_fraction": val_fraction,
            "tokenizer_sha256": hashlib.sha256(tokenizer.files()["tokenizer.json"]).hexdigest(),
            **meta,
        },
    )


def check_tokenizer(tokens: Path, model: Path, stage: str) -> None:
    """UserError where the shards in `tokens` were made with another tokenizer than that in a model's directory."""
    path = model / "tokenizer.json"
    if not path.exists():
        raise UserError(f"{path}: no such file. Run `dvc repro` to make it, or copy the checkpoint's.")
    if read_json(tokens / "meta.json").get("tokenizer_sha256") != sha256(path):
        raise UserError(
            f"{stage}: {tokens} was not made with the tokenizer of {model}. Set tokenize.tokenizer=pretrained and "
            f"tokenize.origin={model}, and run `dvc repro` again."
        )


def text_batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of about BATCH_CHARACTERS."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class TokenStream:
    """The shards of one split as one memory-mapped sequence of token ids."""

    def __init__(self, directory: str | Path, split: str) -> None:
        """
        Raises:
            UserError: a file is missing, truncated or of another type than meta.json says.
        """
        directory = Path(directory)
        again = "Run `dvc repro -f tokenize` to write it again."
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
        self.shards = []
        for path, tokens in files:
            try:
                array = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise UserError(f"{path}: no such file. {again}") from None
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
        """Token ids start … start+length, across shard borders; IndexError where the stream is shorter."""
        if start < 0 or length < 0 or start + length > len(self):
            raise IndexError(f"tokens {start} … {start + length} of {len(self)}")
        parts = []
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while length > 0:
            offset = start - (int(self.ends[shard - 1]) if shard else 0)
            part = self.shards[shard][offset : offset + length]
            parts.append(part)
            start, length, shard = start + len(part), length - len(part), shard + 1
        return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate([np.empty(0, self.dtype), *parts])

    def documents_ids(self, chunk: int = 1 << 20) -> Iterator[np.ndarray]:
        """Each document's ids, without the end token; the boundaries come from the shards alone."""
        rest = np.zeros(0, dtype=np.int64)
        for start in range(0, len(self), chunk):
            ids = np.concatenate((rest, self.read(start, min(chunk, len(self) - start)).astype(np.int64)))
            pieces = np.split(ids, np.flatnonzero(ids == self.eos_id) + 1)
            for piece in pieces[:-1]:
                yield piece[:-1]
            rest = pieces[-1]
        if len(rest):
            yield rest

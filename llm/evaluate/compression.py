"""Held-out text coded without a language model: zstd with a dictionary, and token counts.

Both learn from the training text only, then code each held-out document (zstd) or token (unigram).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

import numpy as np

from llm.errors import UserError

if TYPE_CHECKING:
    import zstandard

    from llm.data.shards import TokenStream

READ = 1_000_000  # tokens read at a time
LEVEL = 19
DICTIONARY_BYTES = 112_640  # 110 KiB, the zstd command's default
SAMPLE_BYTES = 32 * 2**20  # most text that trains the dictionary, for memory
# of a document that count as one sample: ZDICT weighs samples, and reads the beginning of long ones
PIECE_BYTES = 4096


class Decoder(Protocol):
    """The part of `llm.tokenizer.bpe.Tokenizer` that this module needs."""

    def decode(self, ids: list[int]) -> str:
        """Text of ids."""


def documents(stream: TokenStream, tokenizer: Decoder) -> Iterator[tuple[str, int]]:
    """Yield the documents of a stream in order, with their number of tokens.

    Documents end at the end-of-text token, which is counted and not decoded. Memory: the longest
    document."""
    rest = np.zeros(0, dtype=np.int64)
    for start in range(0, len(stream), READ):
        block = np.concatenate(
            [rest, stream.read(start, min(READ, len(stream) - start)).astype(np.int64)]
        )
        ends = np.flatnonzero(block == stream.eos_id)
        first = 0
        for last in ends:
            yield tokenizer.decode(block[first:last].tolist()), int(last) + 1 - first
            first = int(last) + 1
        rest = block[first:]
    if len(rest):
        yield tokenizer.decode(rest.tolist()), len(rest)


def token_counts(stream: TokenStream, vocab_size: int) -> np.ndarray:
    """Count each token: (vocab_size,), int64."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(stream), READ):
        block = stream.read(start, min(READ, len(stream) - start)).astype(np.int64)
        found = np.bincount(block, minlength=vocab_size)
        if len(found) > vocab_size:
            raise UserError(
                f"data/tokens holds token {int(block.max())}, but the model's vocabulary has {vocab_size}: "
                "tokens and model are of different tokenizers. Run `dvc repro`."
            )
        counts += found
    return counts


def unigram_nats(
    stream: TokenStream, counts: np.ndarray, sequence_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return code lengths by add-one smoothed training counts.

    The windows are those of `llm.generation.likelihood.stream_nll`.

    Returns:
        Per window: nats (float64) and predicted tokens.
    """
    costs = np.log(counts.sum() + len(counts)) - np.log(counts + 1.0)
    total = len(stream) - 1
    nats, sizes = [], []
    for start in range(0, total, sequence_length):
        length = min(sequence_length, total - start)
        nats.append(float(costs[stream.read(start + 1, length)].sum()))
        sizes.append(length)
    return np.array(nats), np.array(sizes, dtype=np.int64)


class Sample:
    """Training documents spread evenly over the corpus, at most `budget` bytes, in pieces of at
    most 4 KiB.
    """

    def __init__(self, total_bytes: int, budget: int = SAMPLE_BYTES) -> None:
        self.every = max(1, -(-total_bytes // budget))
        self.room = budget
        self.pieces: list[bytes] = []
        self._count = 0

    def add(self, text: str) -> None:
        """Keep every k-th document, while there is room."""
        if self._count % self.every == 0 and self.room > 0:
            data = text.encode()[: self.room]
            self.room -= len(data)
            self.pieces += [data[i : i + PIECE_BYTES] for i in range(0, len(data), PIECE_BYTES)]
        self._count += 1


def train_dictionary(
    pieces: list[bytes], size: int = DICTIONARY_BYTES
) -> tuple[zstandard.ZstdCompressionDict, str]:
    """Return a zstd dictionary, and how it was made, for the signature.

    If there is too little text for zstd's training, the last bytes of the text are the dictionary."""
    import zstandard

    try:
        return zstandard.train_dictionary(size, list(pieces)), f"dictionary:trained, {size} bytes"
    except zstandard.ZstdError:
        raw = b"".join(pieces)[-size:]
        kind = zstandard.DICT_TYPE_RAWCONTENT
        return zstandard.ZstdCompressionDict(
            raw, dict_type=kind
        ), f"dictionary:raw text, {len(raw)} bytes"


def compressed_bytes(
    texts: Iterable[str], dictionary: zstandard.ZstdCompressionDict
) -> tuple[np.ndarray, np.ndarray]:
    """Return compressed and original bytes of each non-empty text, each alone at level 19.

    Frames carry no magic number, size, checksum or dictionary id: this saves zstd about 10
    bytes a document."""
    import zstandard

    settings = zstandard.ZstdCompressionParameters.from_level(
        LEVEL,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_content_size=False,
        write_checksum=False,
        write_dict_id=False,
    )
    dictionary.precompute_compress(compression_params=settings)
    compressor = zstandard.ZstdCompressor(compression_params=settings, dict_data=dictionary)
    sizes = [
        (len(compressor.compress(data)), len(data)) for text in texts if (data := text.encode())
    ]
    table = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    return table[:, 0], table[:, 1]

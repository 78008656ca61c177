"""A sample of the validation text: whole documents, chosen by a hash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.data.shards import TokenStream
from llm.data.val_sources import validation_sources
from llm.text.hashing import text_hash

if TYPE_CHECKING:
    from llm.tokenizer.bpe import Tokenizer


def choose(
    hashes: np.ndarray,
    sizes: np.ndarray,
    sources: np.ndarray,
    limit: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose documents of about `limit` tokens; every source keeps its share of all tokens.

    Each source gives the documents with the smallest hashes, as long as at least half of a document
    fits its share of the limit. A document that is longer than the whole share is cut to it, so no
    source is left out. Of equal documents only one is taken while the source has others.

    Args:
        hashes: hash of each document's text, (documents,).
        sizes: tokens of each document, (documents,).
        sources: number of each document's source, (documents,).
        limit: tokens of the sample.

    Returns:
        Numbers of the chosen documents, sorted, and how many tokens of each are read.
    """
    numbers, taken = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for source in np.unique(sources):
        own = np.flatnonzero(sources == source)
        share = limit * int(sizes[own].sum()) / int(sizes.sum())
        by_hash = own[np.argsort(hashes[own], kind="stable")]
        rank = np.arange(len(own))
        new = np.append(True, np.diff(hashes[by_hash]) != 0)
        # 0 for the first of equal documents, 1 for its first copy, and so on.
        copies = rank - np.maximum.accumulate(np.where(new, rank, 0))
        order = by_hash[np.argsort(copies, kind="stable")]
        read = np.minimum(sizes[order], max(2, math.ceil(share)))
        fits = np.cumsum(read) - read / 2 < share
        fits[0] = True
        numbers.append(order[fits])
        taken.append(read[fits])
    chosen, read = np.concatenate(numbers), np.concatenate(taken)
    order = np.argsort(chosen)
    return chosen[order], read[order]


class ValSample(TokenStream):
    """The chosen documents of a validation stream, as a stream in the same order.

    The choice depends on the text alone. The sample is in memory, unless it is the whole stream.
    """

    def __init__(
        self,
        stream: TokenStream,
        tokenizer: Tokenizer,
        limit: int | None,
        names: Sequence[str] = (),
        sources: np.ndarray | None = None,
    ) -> None:
        """Read the stream once and choose the documents.

        Args:
            stream: the validation stream.
            tokenizer: decodes the documents.
            limit: tokens of the sample, roughly; None takes all documents.
            names: sources of a mixture.
            sources: index in `names` of each document's source, (documents,).
        """
        self.dtype, self.eos_id, self.vocab_size = stream.dtype, stream.eos_id, stream.vocab_size
        self.all = {"documents": stream.documents, "tokens": len(stream), "bytes": stream.bytes}
        texts = ((len(ids), tokenizer.decode_bytes(ids.tolist())) for ids in stream.documents_ids())
        rows = [(size + 1, len(text), text_hash(text)) for size, text in texts]
        sizes, lengths = (np.array([row[i] for row in rows], dtype=np.int64) for i in (0, 1))
        hashes = np.array([row[2] for row in rows], dtype=np.uint64)
        if sources is None or not names:
            sources = np.zeros(len(rows), dtype=np.int64)
        numbers, read = np.arange(len(rows)), sizes
        whole = limit is None or limit >= len(stream)
        if limit is not None and not whole:
            numbers, read = choose(hashes, sizes, sources, limit)
        self.hashes, self.sources = hashes[numbers], sources[numbers]
        self.names = [names[i] for i in self.sources] if names else None
        self.document_tokens, self.document_bytes = read, lengths[numbers]
        self.cut = read < sizes[numbers]
        self.documents = len(numbers)
        if whole:
            self.shards, self.ends, self.rows_ahead = stream.shards, stream.ends, stream.rows_ahead
        else:
            starts = np.cumsum(sizes) - sizes
            spans = zip(starts[numbers].tolist(), read.tolist(), strict=True)
            parts = [stream.read(start, size) for start, size in spans]
            for i in np.flatnonzero(self.cut):
                parts[i] = np.append(parts[i][:-1], self.dtype.type(self.eos_id))
                self.document_bytes[i] = len(tokenizer.decode_bytes(parts[i][:-1].tolist()))
            self.shards, self.rows_ahead = [np.concatenate([np.empty(0, self.dtype), *parts])], 0
            self.ends = np.array([len(self.shards[0])])
        self.bytes = stream.bytes if whole else int(self.document_bytes.sum())

    def spread(self, limit: int) -> list[int]:
        """Choose about `limit` of these documents, a share of each source; return their indices."""
        ones = np.ones(self.documents, dtype=np.int64)
        return list(choose(self.hashes, ones, self.sources, limit)[0].tolist())

    def describe(self) -> str:
        """Describe the choice in words, for signatures of scores."""
        if self.documents == self.all["documents"] and not self.cut.any():
            return f"all {self.documents} held-out documents"
        total = self.all["documents"]
        return f"{self.documents} of {total} held-out documents, chosen by a hash in every source"

    def about(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Count documents, tokens and bytes of the sample, of all, and of each source.

        Args:
            names: source of each document; None leaves the sources out.
        """
        summary: dict[str, Any] = {
            "documents": self.documents,
            "tokens": len(self),
            "bytes": self.bytes,
            "of": self.all,
        }
        if names:
            label = np.array(names)
            summary["sources"] = {
                name: {
                    "documents": int((label == name).sum()),
                    "tokens": int(self.document_tokens[label == name].sum()),
                    "bytes": int(self.document_bytes[label == name].sum()),
                }
                for name in sorted(set(names))
            }
        return summary


def validation_sample(
    directory: Path, stream: TokenStream, tokenizer: Tokenizer, limit: int | None
) -> ValSample:
    """Choose about `limit` tokens (None: all) of the validation stream in `directory`."""
    names, sources, _ = validation_sources(directory, stream)
    return ValSample(stream, tokenizer, limit, names, sources)

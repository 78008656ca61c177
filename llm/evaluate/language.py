"""Language modelling on held-out text: loss, perplexity and bits per byte, of all of it and of each source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.evaluate import compression, metrics
from llm.evaluate.metrics import Measure
from llm.evaluate.run import check_finite, check_vocabulary
from llm.tasks.base import key

if TYPE_CHECKING:
    from llm.data.shards import TokenStream
    from llm.data.tokenizer import Tokenizer
    from llm.model.transformer import Transformer

WINDOW = 2048  # tokens of context at most for perplexity: logits of a longer one would need gigabytes
LOGITS = 2**25  # held at a time for perplexity: 128 MB in float32
SOURCES = 12  # of the text that have a score of their own, the largest; the others are scored together
OTHERS, UNKNOWN = "others", "unknown"


@dataclass(frozen=True)
class Windows:
    """Held-out text by windows: nats, predicted tokens and bytes of each, (windows,); and nats by documents."""

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    documents: np.ndarray  # (documents,) nats
    scope: str  # for signatures

    def measures(self) -> list[Measure]:
        """Loss and perplexity per token, and bits per byte."""
        return [
            metrics.loss(self.nats, self.tokens, f"nats per token|{self.scope}"),
            metrics.perplexity(self.nats, self.tokens, f"per token|{self.scope}"),
            metrics.bits_per_byte(self.nats, self.bytes, f"end-of-text tokens cost bits, have no bytes|{self.scope}"),
        ]


def language_modeling(
    model: Transformer, stream: TokenStream, tokenizer: Tokenizer, tokens: int | None, who: str = "the model"
) -> Windows:
    """Held-out text in windows that do not overlap.

    Every token but the first is predicted once, end-of-text tokens too; bytes are the documents', so bits per byte
    compare across tokenizers.

    Raises:
        UserError: the model's logits are not finite.
    """
    from llm.likelihood import stream_nll

    check_vocabulary(model, tokenizer, who)
    window = min(model.config.max_position_embeddings, WINDOW)
    batch = max(1, min(16, LOGITS // (window * model.config.vocab_size)))
    nats, counts, documents = stream_nll(model, stream, tokens, window, batch_size=batch)
    check_finite(np.isfinite(nats).tolist(), "windows of text", who)
    return windows(nats, counts, documents, window, stream, tokenizer, tokens, f"windows of {window} tokens")


def windows(
    nats: np.ndarray,
    counts: np.ndarray,
    documents: np.ndarray,
    window: int,
    stream: TokenStream,
    tokenizer: Tokenizer,
    tokens: int | None,
    form: str,
) -> Windows:
    """Code lengths (nats) and predicted tokens of windows, with the bytes of their text."""
    if tokens is None or tokens >= len(stream):
        total = stream.bytes
    else:
        total = sum(len(text.encode()) for text, _ in compression.documents(stream, tokenizer, tokens))
    # A character that a border parts is inexact on both sides; this moves the interval only, the total is exact.
    sizes = window_bytes(stream, tokenizer, counts, window)
    scope = f"{int(counts.sum())} tokens, {total} bytes of held-out documents|{form}"
    return Windows(nats, counts, sizes * (total / sizes.sum()), documents, scope)


def likelihood(
    nats: np.ndarray,
    counts: np.ndarray,
    window: int,
    stream: TokenStream,
    tokenizer: Tokenizer,
    tokens: int | None,
    form: str,
) -> list[Measure]:
    """The measures of code lengths (nats) and predicted tokens of windows."""
    return windows(nats, counts, np.zeros(0), window, stream, tokenizer, tokens, form).measures()


def window_bytes(stream: TokenStream, tokenizer: Tokenizer, counts: np.ndarray, window: int) -> np.ndarray:
    """UTF-8 bytes of the text that each window predicts: (windows,) float64, at least 1."""
    sizes = np.ones(len(counts))
    for i, count in enumerate(counts):
        ids = stream.read(i * window + 1, int(count))
        sizes[i] = max(1, len(tokenizer.decode(ids[ids != stream.eos_id].tolist()).encode()))
    return sizes


# -- by source -------------------------------------------------------------------------------------------------------


def sources(
    stream: TokenStream, tokenizer: Tokenizer, tokens: int | None, records: Iterable[Mapping[str, Any]]
) -> tuple[list[str], np.ndarray]:
    """Where each document of a stream's first `tokens` tokens is from, and its bytes (documents,).

    A document is known by its text, so nothing need be known of how the stream was made. What no record holds (a
    document that was cut, or changed before it was tokenized) is `unknown`.

    records: with `text` and `source`, in the stream's order; read as far as the last document that is whole.
    """
    texts = [text for text, _ in compression.documents(stream, tokenizer, tokens)]
    wanted = {key(text.strip()): UNKNOWN for text in texts}
    whole = texts[:-1] if tokens is not None and tokens < len(stream) else texts
    last = key(whole[-1].strip()) if whole else None
    for record in records if whole else ():
        digest = key(record["text"].strip())
        if wanted.get(digest) == UNKNOWN:
            wanted[digest] = record["source"] or UNKNOWN
            if digest == last:
                break
    return [wanted[key(text.strip())] for text in texts], np.array([len(text.encode()) for text in texts])


def by_source(found: Windows, names: list[str], sizes: np.ndarray) -> list[Measure]:
    """Bits per byte of each source, `bits_per_byte/<source>`, and the rest together; one row a document.

    names, sizes: of the documents, see `sources`.
    """
    volume: Counter[str] = Counter()
    for name, size in zip(names, sizes.tolist(), strict=True):
        volume[name] += size
    largest = [name for name, _ in sorted(volume.items(), key=lambda item: (-item[1], item[0]))[:SOURCES]]
    label = np.array([name if name in largest else OTHERS for name in names])
    measures = []
    for name in sorted(set(label.tolist()), key=lambda name: (name in (OTHERS, UNKNOWN), name)):
        here = (label == name) & (sizes > 0)
        if here.any():
            signature = f"{int(here.sum())} documents, {int(sizes[here].sum())} bytes from {name}"
            measure = metrics.bits_per_byte(found.documents[here], sizes[here], f"{signature}|{found.scope}")
            measures.append(Measure(f"bits_per_byte/{name}", measure.signature, measure.statistics, measure.reduce))
    return measures

"""Language modelling on held-out text: loss, perplexity and bits per byte, of all of it and of each
source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from llm.evaluate import compression, metrics
from llm.evaluate.answers import check_finite, check_vocabulary
from llm.evaluate.metrics import Measure
from llm.tasks.base import key

if TYPE_CHECKING:
    from llm.data.shards import TokenStream
    from llm.data.val_sample import ValSample
    from llm.model.transformer import Transformer
    from llm.tokenizer.bpe import Tokenizer

WINDOW = (
    2048  # tokens of context at most for perplexity: logits of a longer one would need gigabytes
)
LOGITS = 2**25  # in memory at a time for perplexity: 128 MB in float32
SOURCES = (
    12  # of the text that have a score of their own, the largest; the others are scored together
)
OTHERS, UNKNOWN = "others", "unknown"


@dataclass(frozen=True)
class Windows:
    """Held-out text by windows: nats, predicted tokens and bytes of each, (windows,); and nats by
    documents.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    documents: np.ndarray  # (documents,) nats
    scope: str  # for signatures

    def measures(self) -> list[Measure]:
        """Return loss and perplexity per token, and bits per byte."""
        return [
            metrics.loss(self.nats, self.tokens, f"nats per token|{self.scope}"),
            metrics.perplexity(self.nats, self.tokens, f"per token|{self.scope}"),
            metrics.bits_per_byte(
                self.nats, self.bytes, f"end-of-text tokens cost bits, have no bytes|{self.scope}"
            ),
        ]


def language_modeling(
    model: Transformer, stream: ValSample, tokenizer: Tokenizer, who: str = "the model"
) -> Windows:
    """Score held-out text in windows that do not overlap.

    Every token but the first is predicted once, end-of-text tokens too; bytes are the documents',
    so bits per byte compare across tokenizers.

    Raises:
        UserError: the model's logits are not finite.
    """
    from llm.generation.likelihood import stream_nll

    check_vocabulary(model, tokenizer, who)
    window = min(model.config.max_position_embeddings, WINDOW)
    batch = max(1, min(16, LOGITS // (window * model.config.vocab_size)))
    nats, counts, documents = stream_nll(model, stream, window, batch_size=batch)
    check_finite(np.isfinite(nats).tolist(), "windows of text", who)
    return windows(
        nats, counts, documents, window, stream, tokenizer, f"windows of {window} tokens"
    )


def windows(
    nats: np.ndarray,
    counts: np.ndarray,
    documents: np.ndarray,
    window: int,
    stream: ValSample,
    tokenizer: Tokenizer,
    form: str,
) -> Windows:
    """Join code lengths (nats) and predicted tokens of windows with the bytes of their text."""
    # A character split by a border is inexact on both sides. This affects only the interval;
    # the total is exact.
    sizes = window_bytes(stream, tokenizer, counts, window)
    scope = f"{int(counts.sum())} tokens, {stream.bytes} bytes of {stream.describe()}|{form}"
    return Windows(nats, counts, sizes * (stream.bytes / sizes.sum()), documents, scope)


def likelihood(
    nats: np.ndarray,
    counts: np.ndarray,
    window: int,
    stream: ValSample,
    tokenizer: Tokenizer,
    form: str,
) -> list[Measure]:
    """Return the measures of code lengths (nats) and predicted tokens of windows."""
    return windows(nats, counts, np.zeros(0), window, stream, tokenizer, form).measures()


def window_bytes(
    stream: TokenStream, tokenizer: Tokenizer, counts: np.ndarray, window: int
) -> np.ndarray:
    """Return the UTF-8 bytes that each window predicts: (windows,) float64, at least 1."""
    sizes = np.ones(len(counts))
    for i, count in enumerate(counts):
        ids = stream.read(i * window + 1, int(count))
        sizes[i] = max(1, len(tokenizer.decode(ids[ids != stream.eos_id].tolist()).encode()))
    return sizes


# -- by source


def sources(
    stream: ValSample, tokenizer: Tokenizer, records: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Return the source of each document.

    Those of a mixture are on record beside its tokens. Others are known by their text, so nothing
    need be known of how the stream was made; what no record holds (a document that was cut, or
    changed before it was tokenized) is `unknown`.

    records: with `text` and `source`, in the stream's order; read as far as the last document that
        is whole.
    """
    if stream.names is not None:
        return stream.names
    texts = [text for text, _ in compression.documents(stream, tokenizer)]
    wanted = {key(text.strip()): UNKNOWN for text in texts}
    whole = [text for text, cut in zip(texts, stream.cut, strict=True) if not cut]
    last = key(whole[-1].strip()) if whole else None
    for record in records if whole else ():
        digest = key(record["text"].strip())
        if wanted.get(digest) == UNKNOWN:
            wanted[digest] = record["source"] or UNKNOWN
            if digest == last:
                break
    return [wanted[key(text.strip())] for text in texts]


def largest(names: list[str], sizes: np.ndarray) -> list[str]:
    """Return the documents' sources, small ones as `others`; `sizes` are bytes of the documents."""
    volume: Counter[str] = Counter()
    for name, size in zip(names, sizes.tolist(), strict=True):
        volume[name] += size
    names_of_largest = [
        name for name, _ in sorted(volume.items(), key=lambda item: (-item[1], item[0]))[:SOURCES]
    ]
    return [name if name in names_of_largest else OTHERS for name in names]


def by_source(
    found: Windows, names: list[str], sizes: np.ndarray, tokens: np.ndarray
) -> list[Measure]:
    """Return bits per byte of each source, `bits_per_byte/<source>`; one row a document.

    names, sizes, tokens: source, as `largest` gives it, bytes and tokens of each document.
    """
    label, measures = np.array(names), []
    for name in sorted(set(label.tolist()), key=lambda name: (name in (OTHERS, UNKNOWN), name)):
        in_source = (label == name) & (sizes > 0)
        if in_source.any():
            read = f"{int(tokens[in_source].sum())} tokens, {int(sizes[in_source].sum())} bytes"
            signature = f"{int(in_source.sum())} documents, {read} from {name}"
            measure = metrics.bits_per_byte(
                found.documents[in_source], sizes[in_source], f"{signature}|{found.scope}"
            )
            measures.append(
                Measure(
                    f"bits_per_byte/{name}", measure.signature, measure.statistics, measure.reduce
                )
            )
    return measures

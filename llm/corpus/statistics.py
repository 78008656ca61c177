"""Statistics of a corpus, counted while its shards are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from llm.corpus.clean.report import Tally

if TYPE_CHECKING:
    from llm.params import Clean
    from llm.tokenizer.bpe import Tokenizer

SPLITS = ("train", "val")
KINDS = ("tokens", "documents", "bytes")  # tokens include each document's end token
MAX_SOURCES = 100  # sources counted by name; all later ones are counted together
OTHERS = "(other sources)"
FREQUENT, LARGEST = 20, 20  # tokens and sources that the metrics name


class Counts:
    """Counts of documents, bytes and tokens by split and source, of lengths, and of each token."""

    def __init__(self, vocab_size: int, mixture: Mapping[str, float] | None = None) -> None:
        """Start at zero.

        Args:
            vocab_size: number of tokens.
            mixture: weight of each source of a mixture, to note the source of held-out documents.
        """
        self.mixture = dict(mixture or {})
        self.validation: list[int] = []  # index in `mixture` of each held-out document's source
        self.splits = {split: dict.fromkeys(KINDS, 0) for split in SPLITS}
        self.sources: dict[str, dict[str, int]] = {}  # by name: <split>_<kind>
        # power of two -> documents of at most so many tokens, but more than half of it
        self.lengths: Counter[int] = Counter()
        self.tokens = np.zeros(vocab_size, dtype=np.int64)
        self.tally = Tally()

    def add(
        self,
        sizes: np.ndarray,
        lengths: np.ndarray,
        validation: np.ndarray,
        sources: pa.StringArray,
    ) -> None:
        """Count documents.

        Args:
            sizes: bytes of each document, (n,).
            lengths: tokens of each document, (n,).
            validation: mask of the held-out documents, (n,).
            sources: source of each document, (n,).
        """
        coded = sources.dictionary_encode()
        source_of, names = coded.indices.to_numpy(), coded.dictionary.to_pylist()
        by_source: dict[str, dict[str, int]] = {name: {} for name in names}
        for split, mask in zip(SPLITS, (~validation, validation), strict=True):
            for kind, weights in zip(KINDS, (lengths, np.ones_like(sizes), sizes), strict=True):
                self.splits[split][kind] += int(weights[mask].sum())
                shares = np.bincount(source_of[mask], weights=weights[mask], minlength=len(names))
                for name, share in zip(names, shares.tolist(), strict=True):
                    by_source[name][f"{split}_{kind}"] = int(share)
        for name, added in by_source.items():
            self._add_source(name, added)
        if self.mixture:
            index = np.array([list(self.mixture).index(name) for name in names], dtype=np.int64)
            self.validation += index[source_of[validation]].tolist()
        powers = 1 << np.arange(48)
        self.lengths.update(powers[np.searchsorted(powers, lengths)].tolist())

    def merge(self, later: Counts) -> None:
        """Add the counts of a later part of the corpus."""
        for split, added in later.splits.items():
            for kind, number in added.items():
                self.splits[split][kind] += number
        for name, added in later.sources.items():
            self._add_source(name, added)
        self.lengths.update(later.lengths)
        self.tokens += later.tokens
        self.tally.merge(later.tally)
        self.validation += later.validation

    def metrics(self, tokenizer: Tokenizer, clean: Clean) -> dict[str, Any]:
        """Return the content of metrics/tokenize.json."""
        train, val = self.splits["train"], self.splits["val"]
        top = np.argsort(-self.tokens, kind="stable")[:FREQUENT]
        return {
            "vocab_size": tokenizer.vocab_size,
            **{f"{split}_{kind}": self.splits[split][kind] for kind in KINDS for split in SPLITS},
            "bytes_per_token": (train["bytes"] + val["bytes"])
            / (train["tokens"] + val["tokens"]),  # end tokens count
            "unused_tokens": int((self.tokens == 0).sum()),
            "document_tokens": {str(size): self.lengths[size] for size in sorted(self.lengths)},
            "frequent_tokens": [
                {"token": tokenizer.decode([i]), "count": int(self.tokens[i])} for i in top
            ],
            "largest_sources": self._largest(),
            **({"sources": self._sources()} if self.mixture else {}),
            **({"clean": self.tally.metrics(clean)} if clean.active else {}),
        }

    def _sources(self) -> dict[str, Any]:
        total = max(1, self.splits["train"]["tokens"])
        return {
            name: {
                **({"weight": self.mixture[name]} if name in self.mixture else {}),
                **about,
                "share_of_train_tokens": about["train_tokens"] / total,
            }
            for name, about in self.sources.items()
        }

    def _largest(self) -> list[dict[str, Any]]:
        """Return counts of the sources with most tokens, and of all others together."""
        sums = {
            name: {kind: sum(counts[f"{split}_{kind}"] for split in SPLITS) for kind in KINDS}
            for name, counts in self.sources.items()
        }
        order = sorted(sums, key=lambda name: (name == OTHERS, -sums[name]["tokens"], name))
        largest, others = order[:LARGEST], order[LARGEST:]
        rows = [{"source": name, **sums[name]} for name in largest]
        if others:
            rows.append(
                {
                    "source": OTHERS,
                    **{kind: sum(sums[name][kind] for name in others) for kind in KINDS},
                }
            )
        return rows

    def _add_source(self, name: str, added: dict[str, int]) -> None:
        if name not in self.sources and len(self.sources) >= MAX_SOURCES:
            name = OTHERS
        counts = self.sources.setdefault(name, dict.fromkeys(added, 0))
        for kind, value in added.items():
            counts[kind] += value

    def to_json(self) -> dict[str, Any]:
        """Return the counts as a JSON object."""
        return {
            "splits": self.splits,
            "sources": self.sources,
            "lengths": {str(size): self.lengths[size] for size in sorted(self.lengths)},
            "tokens": self.tokens.tolist(),
            "tally": self.tally.to_json(),
            "mixture": self.mixture,
            "validation": self.validation,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counts:
        """Return the counts that `to_json` wrote."""
        counts = cls(0, value["mixture"])
        counts.validation = value["validation"]
        counts.splits, counts.sources = value["splits"], value["sources"]
        counts.lengths = Counter({int(size): count for size, count in value["lengths"].items()})
        counts.tokens = np.array(value["tokens"], dtype=np.int64)
        counts.tally = Tally.from_json(value["tally"])
        return counts

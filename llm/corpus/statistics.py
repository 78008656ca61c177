"""What a corpus holds, counted while it is written."""

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
KINDS = (
    "tokens",
    "documents",
    "bytes",
)  # bytes of text; tokens with the end token of each document
MAX_SOURCES = 100  # that are counted by name; what later ones hold is counted together
OTHERS = "(other sources)"
FREQUENT, LARGEST = 20, 20  # tokens and sources that the metrics name


class Counts:
    """Documents, bytes and tokens by split and by source, lengths of documents, and how often each
    token occurs.
    """

    def __init__(self, vocab_size: int, mixture: Mapping[str, float] | None = None) -> None:
        """mixture: weight of each source of a mixture, whose validation documents are told apart."""
        self.mixture = dict(mixture or {})
        self.validation: list[int] = []  # the place in `mixture` of each held-out document's source
        self.splits = {split: dict.fromkeys(KINDS, 0) for split in SPLITS}
        self.sources: dict[str, dict[str, int]] = {}  # by name: <split>_<kind>
        self.lengths: Counter[int] = (
            Counter()
        )  # a power of two -> documents of at most so many tokens, not of half
        self.tokens = np.zeros(vocab_size, dtype=np.int64)
        self.tally = Tally()

    def add(
        self,
        sizes: np.ndarray,
        lengths: np.ndarray,
        validation: np.ndarray,
        sources: pa.StringArray,
    ) -> None:
        """Count (n,) documents: their bytes, their tokens, whether they are held out, and where
        they come from.
        """
        coded = sources.dictionary_encode()
        which, names = coded.indices.to_numpy(), coded.dictionary.to_pylist()
        by_source: dict[str, dict[str, int]] = {name: {} for name in names}
        for split, here in zip(SPLITS, (~validation, validation), strict=True):
            for kind, weights in zip(KINDS, (lengths, np.ones_like(sizes), sizes), strict=True):
                self.splits[split][kind] += int(weights[here].sum())
                shares = np.bincount(which[here], weights=weights[here], minlength=len(names))
                for name, share in zip(names, shares.tolist(), strict=True):
                    by_source[name][f"{split}_{kind}"] = int(share)
        for name, added in by_source.items():
            self._add_source(name, added)
        if self.mixture:
            at = np.array([list(self.mixture).index(name) for name in names], dtype=np.int64)
            self.validation += at[which[validation]].tolist()
        powers = 1 << np.arange(48)
        self.lengths.update(powers[np.searchsorted(powers, lengths)].tolist())

    def merge(self, later: Counts) -> None:
        """Add what a later part of the corpus holds."""
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
        """What metrics/tokenize.json holds."""
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
        """Documents, bytes and tokens of the sources with most tokens, and of all others together;
        both sides.
        """
        sums = {
            name: {kind: sum(held[f"{split}_{kind}"] for split in SPLITS) for kind in KINDS}
            for name, held in self.sources.items()
        }
        order = sorted(sums, key=lambda name: (name == OTHERS, -sums[name]["tokens"], name))
        shown, others = order[:LARGEST], order[LARGEST:]
        rows = [{"source": name, **sums[name]} for name in shown]
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
        held = self.sources.setdefault(name, dict.fromkeys(added, 0))
        for kind, value in added.items():
            held[kind] += value

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
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
        """What `to_json` gave."""
        found = cls(0, value["mixture"])
        found.validation = value["validation"]
        found.splits, found.sources = value["splits"], value["sources"]
        found.lengths = Counter({int(size): count for size, count in value["lengths"].items()})
        found.tokens = np.array(value["tokens"], dtype=np.int64)
        found.tally = Tally.from_json(value["tally"])
        return found

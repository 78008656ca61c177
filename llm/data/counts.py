"""What a corpus holds, counted while it is written."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from llm.data.tokenizer import Tokenizer

SPLITS = ("train", "val")
KINDS = ("tokens", "documents", "bytes")  # bytes of text; tokens with the end token of each document
MAX_SOURCES = 100  # that are counted by name; what later ones hold is counted together
OTHERS = "(other sources)"
FREQUENT = 20  # tokens that the metrics name
EXAMPLES, EXAMPLE_CHARACTERS = 5, 400  # shown of what a rule removed


class Removed:
    """What cleaning left out or changed: how many documents by rule, and the first of each."""

    def __init__(self, counts: dict[str, int] | None = None, examples: dict[str, Any] | None = None) -> None:
        self.counts = Counter(counts or {})
        self.examples: dict[str, list[dict[str, str]]] = dict(examples or {})

    def add(self, rule: str, document: dict[str, Any]) -> None:
        """Count a document (with id, source and text) under the rule that it fell to."""
        self.counts[rule] += 1
        shown = self.examples.setdefault(rule, [])
        if len(shown) < EXAMPLES:
            text = document["text"][:EXAMPLE_CHARACTERS]
            shown.append({"id": document["id"], "source": document["source"], "text": text})

    def merge(self, later: Removed) -> None:
        """Add what a later part of the corpus lost."""
        self.counts.update(later.counts)
        for rule, examples in later.examples.items():
            shown = self.examples.setdefault(rule, [])
            shown += examples[: EXAMPLES - len(shown)]


class Counts:
    """Documents, bytes and tokens by split and by source, lengths of documents, and how often each token occurs."""

    def __init__(self, vocab_size: int) -> None:
        self.splits = {split: dict.fromkeys(KINDS, 0) for split in SPLITS}
        self.sources: dict[str, dict[str, int]] = {}  # by name: <split>_<kind>
        self.lengths: Counter[int] = Counter()  # a power of two -> documents of at most so many tokens, not of half
        self.tokens = np.zeros(vocab_size, dtype=np.int64)
        self.removed = Removed()

    def add(self, sizes: np.ndarray, lengths: np.ndarray, validation: np.ndarray, sources: pa.StringArray) -> None:
        """Count (n,) documents: their bytes, their tokens, whether they are held out, and where they come from."""
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
        self.removed.merge(later.removed)

    def metrics(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What metrics/tokenize.json holds."""
        train, val = self.splits["train"], self.splits["val"]
        top = np.argsort(-self.tokens, kind="stable")[:FREQUENT]
        removed = {"removed": self.removed.counts, "removed_examples": self.removed.examples}
        return {
            "vocab_size": tokenizer.vocab_size,
            **{f"{split}_{kind}": self.splits[split][kind] for kind in KINDS for split in SPLITS},
            "bytes_per_token": (train["bytes"] + val["bytes"]) / (train["tokens"] + val["tokens"]),  # end tokens count
            "unused_tokens": int((self.tokens == 0).sum()),
            "document_tokens": {str(size): self.lengths[size] for size in sorted(self.lengths)},
            "frequent_tokens": [{"token": tokenizer.decode([i]), "count": int(self.tokens[i])} for i in top],
            "sources": self.sources,
            **(removed if self.removed.counts else {}),
        }

    def _add_source(self, name: str, added: dict[str, int]) -> None:
        if name not in self.sources and len(self.sources) >= MAX_SOURCES:
            name = OTHERS
        held = self.sources.setdefault(name, dict.fromkeys(added, 0))
        for key, number in added.items():
            held[key] += number

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "splits": self.splits,
            "sources": self.sources,
            "lengths": {str(size): self.lengths[size] for size in sorted(self.lengths)},
            "tokens": self.tokens.tolist(),
            "removed": {"counts": dict(self.removed.counts), "examples": self.removed.examples},
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Counts:
        """What `to_json` gave."""
        found = cls(0)
        found.splits, found.sources = value["splits"], value["sources"]
        found.lengths = Counter({int(size): count for size, count in value["lengths"].items()})
        found.tokens = np.array(value["tokens"], dtype=np.int64)
        found.removed = Removed(**value["removed"])
        return found

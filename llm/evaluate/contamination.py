"""How much of the test data the training text contains: shared 13-grams of words.

An example is contaminated where its input or a reference shares a run of 13 words with the training text (Brown et al.
2020, arXiv:2005.14165, appendix C, whose N is at most 13). Words are `text.words`: lower-cased, without punctuation.
Runs stay within one text; an example without a text of 13 words cannot be contaminated and counts as clean.

The test side is held as sorted 64-bit hashes (12 bytes a run), the training side streams past in blocks, so memory
does not grow with the training text. A false match has a chance of (test runs · training runs) / 2^64: below one in a
thousand for a million test runs and ten billion training words.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from llm.evaluate.text import words

N = 13
BLOCK = 1_000_000  # training words hashed at a time
CACHED = 2_000_000  # distinct words whose hash is kept
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so multiplying loses nothing modulo 2^64


class WordHashes:
    """64-bit hashes of words, remembered."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def __call__(self, tokens: list[str]) -> np.ndarray:
        """Hashes of `tokens`, uint64 of the same length."""
        known = self._known
        if len(known) > CACHED:
            known.clear()
        for token in set(tokens).difference(known):
            digest = hashlib.blake2b(token.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            known[token] = int.from_bytes(digest, "big")
        return np.fromiter((known[token] for token in tokens), dtype=np.uint64, count=len(tokens))


def runs(hashes: np.ndarray, n: int = N) -> np.ndarray:
    """Hashes (len - n + 1,) of all runs of n words: a polynomial in the words' hashes (len,), modulo 2^64."""
    if len(hashes) < n:
        return np.zeros(0, dtype=np.uint64)
    size = len(hashes) - n + 1
    total = np.zeros(size, dtype=np.uint64)
    for i in range(n):
        total *= MULTIPLIER
        total += hashes[i : i + size]
    return total


class Contamination:
    """Add the test examples, scan the training texts, read the fractions."""

    def __init__(self, n: int = N) -> None:
        self.n = n
        self._hash = WordHashes()
        # Stands between texts: a run across a border holds it, and no run of a test example does.
        self._border = self._hash(["\0border"])
        self._tasks: list[str] = []  # of each example
        self._test: list[np.ndarray] = []
        self._wanted: np.ndarray | None = None
        self._seen = np.zeros(0, dtype=bool)
        self._block: list[np.ndarray] = []
        self._pending = 0

    def add_example(self, task: str, texts: Iterable[str]) -> None:
        """A test example: its input texts and references. All come before the first `scan`."""
        if self._wanted is not None:
            raise ValueError("examples are added before the training text is scanned")
        found = [runs(self._hash(words(text)), self.n) for text in texts]
        self._tasks.append(task)
        self._test.append(np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.uint64))

    def scan(self, text: str) -> None:
        """One training text."""
        self._block += [self._hash(words(text)), self._border]
        self._pending += len(self._block[-2]) + 1
        if self._pending >= BLOCK:
            self._flush()

    def fractions(self) -> dict[str, float]:
        """Contaminated share of each task's examples."""
        self._flush()
        assert self._wanted is not None
        hits: dict[str, list[bool]] = {}
        for task, grams in zip(self._tasks, self._test, strict=True):
            found = self._seen[np.searchsorted(self._wanted, grams)] if len(grams) else grams
            hits.setdefault(task, []).append(bool(found.any()))
        return {task: sum(flags) / len(flags) for task, flags in sorted(hits.items())}

    def _flush(self) -> None:
        if self._wanted is None:
            self._wanted = np.unique(np.concatenate([np.zeros(0, dtype=np.uint64), *self._test]))
            self._seen = np.zeros(len(self._wanted), dtype=bool)
        if self._block and len(self._wanted):
            grams = runs(np.concatenate(self._block), self.n)
            at = np.searchsorted(self._wanted, grams)
            at[at == len(self._wanted)] = 0
            self._seen[at[self._wanted[at] == grams]] = True
        self._block, self._pending = [], 0

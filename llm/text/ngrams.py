"""Exact search for runs of n words that a stream of texts shares with a fixed set of texts.

The words of the set are numbered; a word outside the set ends every run. Runs of numbers are first
compared by a 64-bit polynomial hash. Where the hashes agree, they are compared number by number, so
the result is exact. Memory depends on the set alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

# words, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C, whose N is at most 13)
N = 13
BLOCK = 1_000_000  # words compared at a time
UNKNOWN = -1  # number of a word outside the set, and of the border between two texts
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that multiplication modulo 2^64 is invertible
TABLE_BITS = 26  # leading hash bits that index the table of the first test, 64 MiB
PIECE = 1 << 20  # characters of a text that are lower-cased and numbered at a time
_WORD = re.compile(r"\w+")


def iter_words(text: str) -> Iterator[str]:
    """Yield the words of a text, as in `words`, with a copy of one piece of it at a time."""
    for piece in pieces(text):
        for match in _WORD.finditer(piece.lower()):
            yield match[0]


def pieces(text: str) -> Iterator[str]:
    """Yield a text in pieces of about a million characters that end after white space.

    So no word is split, and no letter loses the context that decides how it is lower-cased (the
    Greek sigma). If a million more characters hold no white space, the cut falls within them.
    """
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        while end < len(text) and not text[end - 1].isspace() and end - start < 2 * PIECE:
            end += 1
        yield text[start:end]
        start = end
    yield text[start:]


def words(text: str) -> list[str]:
    r"""Return the lower-cased runs of letters, digits and underscores (`\w+`) of a text."""
    return _WORD.findall(text.lower())


def runs(numbers: np.ndarray, n: int) -> np.ndarray:
    """Return the hashes (len - n + 1,), uint64, of all runs of n numbers (len,).

    Lengths are doubled in each pass, so n = 13 takes five passes.
    """
    size = len(numbers) - n + 1
    if size < 1:
        return np.zeros(0, dtype=np.uint64)
    power = numbers.astype(np.uint64)
    power += np.uint64(1)
    power *= MULTIPLIER
    power ^= power >> np.uint64(29)  # so that neighbouring numbers are far apart
    factor, length = MULTIPLIER, 1
    total, done = np.zeros(size, dtype=np.uint64), 0
    with np.errstate(over="ignore"):
        while True:
            if n & length:  # the next `length` numbers of every run
                total *= factor
                total += power[done : done + size]
                done += length
            if length * 2 > n:
                return total
            power = power[:-length] * factor + power[length:]
            factor, length = factor * factor, length * 2


class Grams:
    """The runs of n words of a set of texts, each text with an owner."""

    def __init__(self, n: int = N) -> None:
        self.n = n
        self._vocabulary: dict[str, int] = {}
        self._texts: list[np.ndarray] = []  # numbers of each text's words, and UNKNOWN after them
        self._length = 0
        self._owners: list[tuple[int, int]] = []  # start and owner of each text
        self.numbers = np.zeros(0, dtype=np.int32)
        # One hash of each distinct run, sorted; None while texts are added.
        self.hashes: np.ndarray | None = None
        self.positions = np.zeros(0, dtype=np.int64)  # a position in `numbers` of each distinct run
        # Every occurrence of a run: its position in `numbers`, and the index of the distinct run.
        self._at = self._run = np.zeros(0, dtype=np.int64)
        self._table = np.zeros(0, dtype=bool)

    def add(self, text: str, owner: int = 0) -> None:
        """Add a text to the set, before the first `find`."""
        if self.hashes is not None:
            raise ValueError("texts are added before others are compared with them")
        vocabulary = self._vocabulary
        numbers = [vocabulary.setdefault(word, len(vocabulary)) for word in words(text)]
        if len(numbers) >= self.n:
            self._owners.append((self._length, owner))
            self._texts.append(np.array([*numbers, UNKNOWN], dtype=np.int32))
            self._length += len(numbers) + 1

    def freeze(self) -> None:
        """Sort the runs and close the set; `find` calls this if needed."""
        if self.hashes is not None:
            return
        self.numbers = np.concatenate([*self._texts, np.zeros(0, dtype=np.int32)])
        self._texts = []
        at = _run_starts(self.numbers, self.n)
        hashes = runs(self.numbers, self.n)[at]
        order = np.argsort(hashes, kind="stable")
        if not self._distinguished(hashes[order], at[order]).all():  # two runs have the same hash
            order = np.lexsort([*(self.numbers[at + i] for i in range(self.n)), hashes])
        hashes, sorted_at = hashes[order], at[order]
        new = np.ones(len(at), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | ~self._distinguished(hashes, sorted_at)
        self._at, self._run = at, np.empty(len(at), dtype=np.int64)
        self._run[order] = np.cumsum(new) - 1
        self.hashes, self.positions = hashes[new], sorted_at[new]
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self.hashes >> np.uint64(64 - TABLE_BITS)] = True

    def __len__(self) -> int:
        """Return the number of distinct runs."""
        self.freeze()
        assert self.hashes is not None
        return len(self.hashes)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Return the indices of the set's runs that occur in a text.

        Args:
            numbers: the text's words as `number` returns them.

        Returns:
            Indices in no order, perhaps repeated, int64.
        """
        return self.matches(numbers)[1]

    def matches(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return where a text shares runs with the set, and which.

        Args:
            numbers: the text's words as `number` returns them.

        Returns:
            Positions in `numbers` at which a shared run begins, and the run's index, each int64,
            in no order.
        """
        self.freeze()
        assert self.hashes is not None
        none = np.zeros(0, dtype=np.int64)
        if not len(self.hashes) or len(numbers) < self.n:
            return none, none
        positions, runs_found = [], []
        for start in range(0, len(numbers) - self.n + 1, BLOCK):
            at, low = self._find(numbers[start : start + BLOCK + self.n - 1], self.hashes)
            positions.append(at + start)
            runs_found.append(low)
        return np.concatenate(positions), np.concatenate(runs_found)

    def _find(self, numbers: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        hashes = runs(numbers, self.n)
        at = np.flatnonzero(self._table[hashes >> np.uint64(64 - TABLE_BITS)])
        low = np.searchsorted(wanted, hashes[at])
        none = np.zeros(0, dtype=np.int64)
        matched_at, matched = [none], [none]
        while len(at):  # usually one pass; more if several runs of the set have the same hash
            inside = low < len(wanted)
            at, low = at[inside], low[inside]
            equal = wanted[low] == hashes[at]
            at, low = at[equal], low[equal]
            same = np.ones(len(at), dtype=bool)
            for i in range(self.n):
                same &= self.numbers[self.positions[low] + i] == numbers[at + i]
            matched_at.append(at[same])
            matched.append(low[same])
            at, low = at[~same], low[~same] + 1
        return np.concatenate(matched_at), np.concatenate(matched)

    def number(self, texts: Iterable[str]) -> np.ndarray:
        """Return the texts' words as numbers (n,), int32, with a border after each text."""
        get = self._vocabulary.get
        blocks: list[np.ndarray] = []
        numbers: list[int] = []
        for text in texts:
            for piece in pieces(text):
                numbers += [get(word, UNKNOWN) for word in words(piece)]
                if len(numbers) > BLOCK:
                    blocks.append(np.array(numbers, dtype=np.int32))
                    numbers = []
            numbers.append(UNKNOWN)
        return np.concatenate([*blocks, np.array(numbers, dtype=np.int32)])

    def contains_any(self, text: str) -> bool:
        """Tell whether a text shares a run with the set."""
        return len(self.find(self.number([text]))) > 0

    def owners(self, seen: np.ndarray) -> set[int]:
        """Return the owners of texts with one of the runs marked in `seen` (runs,), bool."""
        self.freeze()
        hit = self._at[seen[self._run]] if len(self._at) else self._at
        starts = np.array([start for start, _ in self._owners], dtype=np.int64)
        texts = np.unique(np.searchsorted(starts, hit, side="right") - 1)
        return {self._owners[int(i)][1] for i in texts}

    def _distinguished(self, hashes: np.ndarray, at: np.ndarray) -> np.ndarray:
        """Return False for neighbours (len - 1,) with equal hashes but different runs."""
        same = np.ones(max(0, len(at) - 1), dtype=bool)
        for i in range(self.n):
            same &= self.numbers[at[1:] + i] == self.numbers[at[:-1] + i]
        return same | (hashes[1:] != hashes[:-1])


def _run_starts(numbers: np.ndarray, n: int) -> np.ndarray:
    """Return the positions at which runs of n numbers begin that cross no border."""
    if len(numbers) < n:
        return np.zeros(0, dtype=np.int64)
    unknown = np.concatenate(([0], np.cumsum(numbers == UNKNOWN)))
    return np.flatnonzero(unknown[n:] == unknown[:-n])

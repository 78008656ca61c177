"""Which runs of n words a stream of texts shares with a fixed set of texts: exactly, in memory that
the set decides.

The words of the set are numbered; a word outside of it ends every run. Runs of numbers are compared
by a 64-bit polynomial hash first, and where that agrees, number by number: a hit is a hit, a miss
is a miss."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

# words, as in GPT-3 (Brown et al. 2020, arXiv:2005.14165, appendix C, whose N is at most 13)
N = 13
BLOCK = 1_000_000  # words compared at a time
UNKNOWN = -1  # number of a word that no text of the set has, and of the border between two texts
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying loses nothing modulo 2^64
TABLE_BITS = 26  # of the first look: 64 MiB of yes or no
_WORD = re.compile(r"\w+")


PIECE = 1 << 20  # characters of a text that are lower-cased and numbered at a time


def iter_words(text: str) -> Iterator[str]:
    """`words`, one after the other; what is held of a long text is a copy of a piece."""
    for piece in pieces(text):
        for match in _WORD.finditer(piece.lower()):
            yield match[0]


def pieces(text: str) -> Iterator[str]:
    """A text in parts of about a million characters, cut behind white space: no word is parted, nor
    is what decides how a letter is lower-cased (the Greek sigma). A million characters without a
    blank are cut where they are."""
    start = 0
    while len(text) - start > PIECE:
        end = start + PIECE
        while end < len(text) and not text[end - 1].isspace() and end - start < 2 * PIECE:
            end += 1
        yield text[start:end]
        start = end
    yield text[start:]


def words(text: str) -> list[str]:
    r"""Lower-cased runs of letters, digits and underscores (`\w+`): punctuation separates and is
    dropped.
    """
    return _WORD.findall(text.lower())


def runs(numbers: np.ndarray, n: int) -> np.ndarray:
    """Hashes (len - n + 1,) uint64 of all runs of n numbers (len,), by doubling: n = 13 takes five
    passes.
    """
    size = len(numbers) - n + 1
    if size < 1:
        return np.zeros(0, dtype=np.uint64)
    power = numbers.astype(np.uint64)
    power += np.uint64(1)
    power *= MULTIPLIER
    power ^= power >> np.uint64(29)  # neighbouring numbers lie far apart
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
    """The runs of n words of some texts, each text with an owner; then found in others."""

    def __init__(self, n: int = N) -> None:
        self.n = n
        self._vocabulary: dict[str, int] = {}
        self._texts: list[np.ndarray] = []  # numbers of each text's words, and UNKNOWN behind them
        self._length = 0
        self._owners: list[tuple[int, int]] = []  # where each text begins, and whose it is
        self.numbers = np.zeros(0, dtype=np.int32)
        self.hashes: np.ndarray | None = None  # sorted, one of each run; None while texts are added
        self.places = np.zeros(0, dtype=np.int64)  # of those runs in `numbers`
        self._at = self._run = np.zeros(
            0, dtype=np.int64
        )  # of every run as it stands: its place, which one it is
        self._table = np.zeros(0, dtype=bool)

    def add(self, text: str, owner: int = 0) -> None:
        """A text of the set; all come before the first `find`."""
        if self.hashes is not None:
            raise ValueError("texts are added before others are compared with them")
        known = self._vocabulary
        found = [known.setdefault(word, len(known)) for word in words(text)]
        if len(found) >= self.n:
            self._owners.append((self._length, owner))
            self._texts.append(np.array([*found, UNKNOWN], dtype=np.int32))
            self._length += len(found) + 1

    def freeze(self) -> None:
        """Sort the runs; `find` does it where it has not been done."""
        if self.hashes is not None:
            return
        self.numbers = np.concatenate([*self._texts, np.zeros(0, dtype=np.int32)])
        self._texts = []
        at = _whole(self.numbers, self.n)
        hashes = runs(self.numbers, self.n)[at]
        order = np.argsort(hashes, kind="stable")
        if not self._equal_where(
            hashes[order], at[order]
        ).all():  # once in 2^64, two runs have one hash
            order = np.lexsort([*(self.numbers[at + i] for i in range(self.n)), hashes])
        hashes, sorted_at = hashes[order], at[order]
        new = np.ones(len(at), dtype=bool)
        new[1:] = (hashes[1:] != hashes[:-1]) | ~self._equal_where(hashes, sorted_at)
        self._at, self._run = at, np.empty(len(at), dtype=np.int64)
        self._run[order] = np.cumsum(new) - 1
        self.hashes, self.places = hashes[new], sorted_at[new]
        self._table = np.zeros(1 << TABLE_BITS, dtype=bool)
        self._table[self.hashes >> np.uint64(64 - TABLE_BITS)] = True

    def __len__(self) -> int:
        """Different runs."""
        self.freeze()
        assert self.hashes is not None
        return len(self.hashes)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Indices of the runs, in no order and perhaps repeated, that stand in a text given as
        `number` gives it.
        """
        self.freeze()
        assert self.hashes is not None
        if not len(self.hashes) or len(numbers) < self.n:
            return np.zeros(0, dtype=np.int64)
        found = [
            self._find(numbers[start : start + BLOCK + self.n - 1], self.hashes)
            for start in range(0, len(numbers) - self.n + 1, BLOCK)
        ]
        return np.concatenate(found)

    def _find(self, numbers: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        hashes = runs(numbers, self.n)
        at = np.flatnonzero(self._table[hashes >> np.uint64(64 - TABLE_BITS)])
        low = np.searchsorted(wanted, hashes[at])
        found = []
        while len(at):  # usually once; again where several runs of the set have one hash
            inside = low < len(wanted)
            at, low = at[inside], low[inside]
            equal = wanted[low] == hashes[at]
            at, low = at[equal], low[equal]
            same = np.ones(len(at), dtype=bool)
            for i in range(self.n):
                same &= self.numbers[self.places[low] + i] == numbers[at + i]
            found.append(low[same])
            at, low = at[~same], low[~same] + 1
        return np.concatenate([*found, np.zeros(0, dtype=np.int64)])

    def number(self, texts: Iterable[str]) -> np.ndarray:
        """The texts' words as numbers, int32, with a border behind each text."""
        get = self._vocabulary.get
        parts: list[np.ndarray] = []
        found: list[int] = []
        for text in texts:
            for piece in pieces(text):
                found += [get(word, UNKNOWN) for word in words(piece)]
                if len(found) > BLOCK:
                    parts.append(np.array(found, dtype=np.int32))
                    found = []
            found.append(UNKNOWN)
        return np.concatenate([*parts, np.array(found, dtype=np.int32)])

    def contains_any(self, text: str) -> bool:
        """Whether a text shares a run with the set."""
        return len(self.find(self.number([text]))) > 0

    def owners(self, seen: np.ndarray) -> set[int]:
        """Owners of a text with one of the runs marked in `seen` (bool, one for each run), wherever
        the run stands.
        """
        self.freeze()
        hit = self._at[seen[self._run]] if len(self._at) else self._at
        starts = np.array([start for start, _ in self._owners], dtype=np.int64)
        texts = np.unique(np.searchsorted(starts, hit, side="right") - 1)
        return {self._owners[int(i)][1] for i in texts}

    def _equal_where(self, hashes: np.ndarray, at: np.ndarray) -> np.ndarray:
        """For each neighbouring pair (len - 1,): False where the hashes are equal and the runs are
        not.
        """
        same = np.ones(max(0, len(at) - 1), dtype=bool)
        for i in range(self.n):
            same &= self.numbers[at[1:] + i] == self.numbers[at[:-1] + i]
        return same | (hashes[1:] != hashes[:-1])


def _whole(numbers: np.ndarray, n: int) -> np.ndarray:
    """Where runs of n numbers begin that cross no border."""
    if len(numbers) < n:
        return np.zeros(0, dtype=np.int64)
    unknown = np.concatenate(([0], np.cumsum(numbers == UNKNOWN)))
    return np.flatnonzero(unknown[n:] == unknown[:-n])

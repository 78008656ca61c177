"""Contamination of the test data by the training text: shared 13-grams of words.

An example is contaminated where its input or a reference shares a run of 13 words with the training
text (Brown et al. 2020, arXiv:2005.14165, appendix C, whose N is at most 13). Words are
`ngrams.words`: lower-cased, without punctuation. Runs stay within one text; an example without a
    text of 13 words cannot be contaminated and counts as clean.

The test side is held in memory, 25 bytes a run and a word; the training side streams past in
blocks, so memory does not grow with it. A match is compared word by word: nothing is counted that
is not there."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from llm.text import ngrams

N = ngrams.N


class Contamination:
    """Add the test examples, scan the training texts, read the fractions."""

    def __init__(self, n: int = N) -> None:
        self.grams = ngrams.Grams(n)
        self._tasks: list[str] = []  # of each example
        self._seen: dict[str, np.ndarray] = {}  # by side of the training text
        self._block: dict[str, list[str]] = {}
        self._pending = 0

    def add_example(self, task: str, texts: Iterable[str]) -> None:
        """Add a test example: its input texts and references. All come before the first `scan`."""
        for text in texts:
            self.grams.add(text, len(self._tasks))
        self._tasks.append(task)

    def scan(self, text: str, side: str = "pretraining") -> None:
        """Scan one training text, and record its matches under `side`."""
        self._block.setdefault(side, []).append(text)
        self._pending += len(text)
        if self._pending >= 6 * ngrams.BLOCK:  # characters of about so many words
            self._flush()

    def fractions(self, side: str | None = None) -> dict[str, float]:
        """Return the contaminated share of each task's examples, by the text of one side or (None) of any."""
        self._flush()
        seen = np.zeros(len(self.grams), dtype=bool)
        for name, marks in self._seen.items():
            if side in (None, name):
                seen |= marks
        hit = self.grams.owners(seen)
        flags: dict[str, list[bool]] = {}
        for number, task in enumerate(self._tasks):
            flags.setdefault(task, []).append(number in hit)
        return {task: sum(marks) / len(marks) for task, marks in sorted(flags.items())}

    def _flush(self) -> None:
        for side, texts in self._block.items():
            seen = self._seen.setdefault(side, np.zeros(len(self.grams), dtype=bool))
            seen[self.grams.find(self.grams.number(texts))] = True
        self._block, self._pending = {}, 0

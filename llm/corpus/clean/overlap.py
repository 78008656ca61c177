"""Lines of training text that share 13 words in a row with text that is held out.

GPT-3 cut such passages out of its training text, with 200 characters on either side (Brown et al.
2020, arXiv:2005.14165, appendix C). Here the lines that hold a shared run go, whole, so what is
left reads well: in prose a line is a paragraph. A document in one line goes with it.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

import numpy as np

from llm.corpus.clean.rules import Cleaner
from llm.params import Clean
from llm.text.hashing import is_held_out, text_hash
from llm.text.ngrams import Grams

# Characters of held-out documents that are compared with; about 50 bytes of memory a word.
PROTECTED_CHARACTERS = 64_000_000


def shared_lines(text: str, held_out: Grams) -> list[int]:
    """Return the numbers of the lines to cut, so that the rest shares no run with the set.

    Cutting a line brings its neighbours together, so the rest is compared again until none is
    shared.
    """
    numbers = [held_out.number([line])[:-1] for line in text.split("\n")]
    kept = np.arange(len(numbers))
    while len(kept):
        line_of_word = np.repeat(kept, [len(numbers[i]) for i in kept])
        at, _ = held_out.matches(np.concatenate([numbers[i] for i in kept]))
        if not len(at):
            break
        words = at[:, None] + np.arange(held_out.n)  # (matches, n)
        kept = np.setdiff1d(kept, line_of_word[words])
    return np.setdiff1d(np.arange(len(numbers)), kept).tolist()


def without_lines(text: str, numbers: Iterable[int]) -> str:
    """Return a text without these lines; of the empty lines around a cut, one is left."""
    cut, kept = set(numbers), [""]
    for number, line in enumerate(text.split("\n")):
        if number in cut:
            continue
        if line.strip() or kept[-1].strip() or number - 1 not in cut:
            kept.append(line)
    return "\n".join(kept[1:]).strip("\n") if cut else text


class HeldOutTexts:
    """Returns the held-out documents among those given, cleaned, each with its hash."""

    def __init__(self, params: Clean, val_fraction: float) -> None:
        self.cleaner, self.val_fraction = Cleaner(params), val_fraction

    def __call__(self, documents: Iterable[tuple[int, str, str]]) -> list[tuple[int, str]]:
        """Choose among tuples of a document's index, text and group."""
        texts = (
            self.cleaner(text).text
            for _, text, group in documents
            if is_held_out(group, text, self.val_fraction)
        )
        return [(text_hash(text), text) for text in texts if text is not None]


def lowest(
    texts: Iterable[tuple[int, str]], limit: int = PROTECTED_CHARACTERS
) -> tuple[list[str], int]:
    """Return the texts with the lowest hashes, up to `limit` characters, and how many there were.

    Evaluation reads the held-out documents with the lowest hashes too (`llm.data.val_sample`).
    Memory does not grow with `texts`.
    """
    heap: list[tuple[int, str]] = []  # hashes are negated, so the highest is on top
    characters = total = 0
    for hash_, text in texts:
        total += 1
        heapq.heappush(heap, (-hash_, text))
        characters += len(text)
        while characters > limit:
            characters -= len(heapq.heappop(heap)[1])
    return [text for _, text in sorted(heap, reverse=True)], total

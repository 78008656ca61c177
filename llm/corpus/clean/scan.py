"""The look at every document before the first is written: what the rules that compare documents
have to know.

Units of work are row groups of `data/raw`, each a pure function of its text, done by any number of
processes and collected in their order. Digests and signatures go to files, never to memory: 24
bytes a document, 28 a paragraph, 4 · num_perm a document for near duplicates.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llm.corpus.clean.rules import Cleaner
from llm.params import Clean
from llm.sources import raw
from llm.text.minhash import MIN_WORDS, minhashes
from llm.text.ngrams import Grams, iter_words

DOCUMENT = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("index", "<u8")]
)  # digest of 128 bits, place in data/raw
PARAGRAPH = np.dtype(
    [*DOCUMENT.descr, ("number", "<u4")]
)  # and the paragraph's number in its document
_BORDER = re.compile(r"\n[ \t]*\n\s*")


def paragraphs(text: str) -> list[str]:
    """The parts between empty lines."""
    return _BORDER.split(text)


def digest(text: str) -> tuple[int, int]:
    """128 bits of BLAKE2b, as two numbers."""
    both = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(both[:8], "little"), int.from_bytes(both[8:], "little")


@dataclass
class Found:
    """What a unit holds."""

    contaminated: list[int] = field(
        default_factory=list
    )  # places of documents with an evaluation example
    documents: list[tuple[int, int, int]] = field(default_factory=list)
    paragraphs: list[np.ndarray] = field(
        default_factory=list
    )  # each (eligible paragraphs of a document,) PARAGRAPH
    signed: list[int] = field(default_factory=list)  # places of the documents that have a signature
    signatures: list[np.ndarray] = field(default_factory=list)  # each (num_perm,) uint32


class Scanner:
    """Cleans the documents of a unit and notes what is compared with other documents."""

    def __init__(self, params: Clean, examples: Grams | None) -> None:
        self.params, self.examples, self.cleaner = params, examples, Cleaner(params)

    def __call__(self, texts: Iterable[tuple[int, str]]) -> Found:
        """Args: place of each document in data/raw (from 0), and its text."""
        p, found = self.params, Found()
        for index, original in texts:
            text = self.cleaner(original).text
            if text is None:
                continue
            if self.examples is not None and self.examples.contains_any(text):
                found.contaminated.append(index)
                continue
            if p.exact_duplicates:
                found.documents.append((*digest(text), index))
            if p.duplicate_paragraphs:
                parts = (
                    (*digest(" ".join(part.split())), index, number)
                    for number, part in enumerate(paragraphs(text))
                    if len(part) >= p.duplicate_paragraphs
                )
                found.paragraphs.append(np.fromiter(parts, dtype=PARAGRAPH))
            if p.near_duplicates and len(list(islice(iter_words(text), MIN_WORDS))) == MIN_WORDS:
                found.signed.append(index)
                (minhash,) = minhashes(
                    [iter_words(text)], p.near_duplicates.ngram, p.near_duplicates.num_perm
                )
                found.signatures.append(minhash.hashvalues.astype(np.uint32))
        return found


@dataclass(frozen=True)
class Scanned:
    """Files of digests and signatures, in the order of the documents."""

    documents: Path  # of DOCUMENT
    paragraphs: Path  # of PARAGRAPH
    signed: Path  # of uint64
    signatures: Path  # (signed documents, num_perm) uint32
    contaminated: list[int]
    total: int  # documents in data/raw


def scan(
    params: Clean, directory: Path, scratch: Path, examples: Grams | None, workers: int
) -> Scanned:
    """Look at every document of `directory`; the files do not depend on the number of workers.

    Raises:
        UserError: data/raw cannot be read.
    """
    documents, paragraphs, signed, signatures = (
        scratch / f"{name}.bin" for name in ("documents", "paragraphs", "signed", "signatures")
    )
    contaminated: list[int] = []
    places = list(accumulate((rows for _, _, rows in raw.groups(directory)), initial=0))
    units = [
        (path, group, place)
        for (path, group, _), place in zip(raw.groups(directory), places, strict=False)
    ]
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(path, "wb"))
            for path in (documents, paragraphs, signed, signatures)
        ]
        for found in _results(Scanner(params, examples), units, workers, stack):
            contaminated.extend(found.contaminated)
            _append(files[0], np.array(found.documents, dtype=DOCUMENT))
            for paragraphs_of_one in found.paragraphs:
                _append(files[1], paragraphs_of_one)
            _append(files[2], np.array(found.signed, dtype=np.uint64))
            _append(files[3], np.array(found.signatures, dtype=np.uint32))
    return Scanned(documents, paragraphs, signed, signatures, contaminated, places[-1])


def _append(file: BinaryIO, array: np.ndarray) -> None:
    file.write(array.tobytes())


Unit = tuple[Path, int, int]  # file, row group, place of its first document


def _results(
    scanner: Scanner, units: list[Unit], workers: int, stack: ExitStack
) -> Iterator[Found]:
    if workers == 1 or len(units) == 1:
        _start(scanner)
        return map(_work, units)
    # spawn: a fork would copy threads' locks (pyarrow's) as they happen to be.
    context = multiprocessing.get_context("spawn")
    pool = stack.enter_context(context.Pool(min(workers, len(units)), _start, (scanner,)))
    return pool.imap(_work, units)


_scanner: Any = None  # of this process


def _start(scanner: Scanner) -> None:
    global _scanner  # a pool's worker has nowhere else to keep it
    _scanner = scanner


def _work(unit: Unit) -> Found:
    path, group, place = unit
    found: Found = _scanner(enumerate(raw.read_group(path, group), place))
    return found

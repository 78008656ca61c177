"""Scan of all documents, which collects what the rules that compare documents need.

A unit of work is a row group of `data/raw`. Any number of processes scan units, and the results are
collected in order. Digests and signatures go to files, not to memory: 24 bytes a document, 28 a
paragraph, and 4 · num_perm a document for near duplicates.
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

# 128-bit digest, and the document's index in data/raw
DOCUMENT = np.dtype([("high", "<u8"), ("low", "<u8"), ("index", "<u8")])
# the same, and the paragraph's number in its document
PARAGRAPH = np.dtype([*DOCUMENT.descr, ("number", "<u4")])
_BORDER = re.compile(r"\n[ \t]*\n\s*")


def paragraphs(text: str) -> list[str]:
    """Split a text at empty lines."""
    return _BORDER.split(text)


def digest(text: str) -> tuple[int, int]:
    """Return 128 bits of BLAKE2b as two numbers."""
    both = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return int.from_bytes(both[:8], "little"), int.from_bytes(both[8:], "little")


@dataclass
class ScannedUnit:
    """Digests and signatures of a unit."""

    # indices of documents with an evaluation example
    contaminated: list[int] = field(default_factory=list)
    documents: list[tuple[int, int, int]] = field(default_factory=list)
    # one array a document: (eligible paragraphs,) PARAGRAPH
    paragraphs: list[np.ndarray] = field(default_factory=list)
    signed: list[int] = field(default_factory=list)  # indices of documents with a signature
    signatures: list[np.ndarray] = field(default_factory=list)  # each (num_perm,) uint32


class Scanner:
    """Cleans the documents of a unit and collects what is compared with other documents."""

    def __init__(self, params: Clean, examples: Grams | None) -> None:
        self.params, self.examples, self.cleaner = params, examples, Cleaner(params)

    def __call__(self, texts: Iterable[tuple[int, str]]) -> ScannedUnit:
        """Scan pairs of a document's index in data/raw (from 0) and its text."""
        p, scanned = self.params, ScannedUnit()
        for index, original in texts:
            text = self.cleaner(original).text
            if text is None:
                continue
            if self.examples is not None and self.examples.contains_any(text):
                scanned.contaminated.append(index)
                continue
            if p.exact_duplicates:
                scanned.documents.append((*digest(text), index))
            if p.duplicate_paragraphs:
                parts = (
                    (*digest(" ".join(part.split())), index, number)
                    for number, part in enumerate(paragraphs(text))
                    if len(part) >= p.duplicate_paragraphs
                )
                scanned.paragraphs.append(np.fromiter(parts, dtype=PARAGRAPH))
            if p.near_duplicates and len(list(islice(iter_words(text), MIN_WORDS))) == MIN_WORDS:
                scanned.signed.append(index)
                (minhash,) = minhashes(
                    [iter_words(text)], p.near_duplicates.ngram, p.near_duplicates.num_perm
                )
                scanned.signatures.append(minhash.hashvalues.astype(np.uint32))
        return scanned


@dataclass(frozen=True)
class Scanned:
    """Files of digests and signatures, in the order of the documents."""

    documents: Path  # (documents,) DOCUMENT
    paragraphs: Path  # (paragraphs,) PARAGRAPH
    signed: Path  # (signed documents,) uint64
    signatures: Path  # (signed documents, num_perm) uint32
    contaminated: list[int]
    total: int  # documents in data/raw


def scan(
    params: Clean, directory: Path, scratch: Path, examples: Grams | None, workers: int
) -> Scanned:
    """Scan every document of `directory`; the files do not depend on the number of workers.

    Raises:
        UserError: data/raw cannot be read.
    """
    documents, paragraphs, signed, signatures = (
        scratch / f"{name}.bin" for name in ("documents", "paragraphs", "signed", "signatures")
    )
    contaminated: list[int] = []
    starts = list(accumulate((rows for _, _, rows in raw.groups(directory)), initial=0))
    units = [
        (path, group, start)
        for (path, group, _), start in zip(raw.groups(directory), starts, strict=False)
    ]
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(path, "wb"))
            for path in (documents, paragraphs, signed, signatures)
        ]
        for scanned in _results(Scanner(params, examples), units, workers, stack):
            contaminated.extend(scanned.contaminated)
            _append(files[0], np.array(scanned.documents, dtype=DOCUMENT))
            for paragraphs_of_one in scanned.paragraphs:
                _append(files[1], paragraphs_of_one)
            _append(files[2], np.array(scanned.signed, dtype=np.uint64))
            _append(files[3], np.array(scanned.signatures, dtype=np.uint32))
    return Scanned(documents, paragraphs, signed, signatures, contaminated, starts[-1])


def _append(file: BinaryIO, array: np.ndarray) -> None:
    file.write(array.tobytes())


Unit = tuple[Path, int, int]  # file, row group, index of its first document


def _results(
    scanner: Scanner, units: list[Unit], workers: int, stack: ExitStack
) -> Iterator[ScannedUnit]:
    if workers == 1 or len(units) == 1:
        _start(scanner)
        return map(_work, units)
    # spawn, because a fork would copy locks that pyarrow's threads hold.
    context = multiprocessing.get_context("spawn")
    pool = stack.enter_context(context.Pool(min(workers, len(units)), _start, (scanner,)))
    return pool.imap(_work, units)


_scanner: Any = None  # this process's scanner


def _start(scanner: Scanner) -> None:
    global _scanner  # a pool's worker has no other place for it
    _scanner = scanner


def _work(unit: Unit) -> ScannedUnit:
    path, group, start = unit
    scanned: ScannedUnit = _scanner(enumerate(raw.read_group(path, group), start))
    return scanned

"""Scan of all documents, which collects what the rules that compare documents need.

A unit of work is a row group of `data/raw`. Any number of processes scan units, and the results are
collected in order. Digests and signatures go to files, not to memory: 24 bytes a document, 28 a
paragraph, and 4 · num_perm a document for near duplicates.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from llm.corpus.chunks import Chunk, find_chunks, read_chunk
from llm.corpus.clean.overlap import shared_lines, without_lines
from llm.corpus.clean.rules import Cleaner
from llm.params import Clean
from llm.runtime.pool import Workers
from llm.text.hashing import is_held_out
from llm.text.minhash import MIN_WORDS, minhashes
from llm.text.ngrams import Grams, iter_words

# 128-bit digest, and the document's index in data/raw
DOCUMENT = np.dtype([("high", "<u8"), ("low", "<u8"), ("index", "<u8")])
LINE = np.dtype([("index", "<u8"), ("number", "<u4")])  # a document's index, a line of it
# the same as DOCUMENT, and the paragraph's number in its document
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

    # (cut lines,) LINE of the training documents that share runs with held-out text
    lines: list[np.ndarray] = field(default_factory=list)
    contaminated: list[int] = field(default_factory=list)  # indices of those with no other line
    documents: list[tuple[int, int, int]] = field(default_factory=list)
    # one array a document: (eligible paragraphs,) PARAGRAPH
    paragraphs: list[np.ndarray] = field(default_factory=list)
    signed: list[int] = field(default_factory=list)  # indices of documents with a signature
    signatures: list[np.ndarray] = field(default_factory=list)  # each (num_perm,) uint32


class Scanner:
    """Cleans the documents of a unit and collects what is compared with other documents."""

    def __init__(self, params: Clean, held_out: Grams | None, val_fraction: float) -> None:
        """Keep what the rules need.

        Args:
            params: the rules.
            held_out: runs of words that training text must not have; None leaves all text.
            val_fraction: share of held-out documents, from which no line is cut.
        """
        self.params, self.held_out, self.cleaner = params, held_out, Cleaner(params)
        self.val_fraction = val_fraction

    def __call__(self, documents: Iterable[tuple[int, str, str]]) -> ScannedUnit:
        """Scan tuples of a document's index in data/raw (from 0), its text and its group."""
        p, scanned = self.params, ScannedUnit()
        for index, original, group in documents:
            text = self.cleaner(original).text
            if text is None:
                continue
            if self._shares_runs(text, original, group):
                assert self.held_out is not None
                numbers = shared_lines(text, self.held_out)
                text = without_lines(text, numbers)
                if not text.strip():
                    scanned.contaminated.append(index)
                    continue
                scanned.lines.append(np.array([(index, i) for i in numbers], dtype=LINE))
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

    def _shares_runs(self, text: str, original: str, group: str) -> bool:
        return (
            self.held_out is not None
            and not is_held_out(group, original, self.val_fraction)
            and self.held_out.contains_any(text)
        )


@dataclass(frozen=True)
class Scanned:
    """Files of digests and signatures, in the order of the documents."""

    documents: Path  # (documents,) DOCUMENT
    paragraphs: Path  # (paragraphs,) PARAGRAPH
    signed: Path  # (signed documents,) uint64
    signatures: Path  # (signed documents, num_perm) uint32
    contaminated: list[int]
    lines: np.ndarray  # (cut lines,) LINE, sorted
    total: int  # documents in data/raw


def scan(
    params: Clean,
    directory: Path,
    scratch: Path,
    held_out: Grams | None,
    val_fraction: float,
    workers: int,
) -> Scanned:
    """Scan every document of `directory`; the files do not depend on the number of workers.

    Raises:
        UserError: data/raw cannot be read.
    """
    names = ("documents", "paragraphs", "signed", "signatures")
    documents, paragraphs, signed, signatures = (scratch / f"{name}.bin" for name in names)
    contaminated: list[int] = []
    lines = [np.zeros(0, dtype=LINE)]
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(path, "wb"))
            for path in (documents, paragraphs, signed, signatures)
        ]
        for scanned in results(Scanner(params, held_out, val_fraction), directory, workers):
            contaminated.extend(scanned.contaminated)
            lines += scanned.lines
            _append(files[0], np.array(scanned.documents, dtype=DOCUMENT))
            for paragraphs_of_one in scanned.paragraphs:
                _append(files[1], paragraphs_of_one)
            _append(files[2], np.array(scanned.signed, dtype=np.uint64))
            _append(files[3], np.array(scanned.signatures, dtype=np.uint32))
    total = sum(chunk.rows for chunk in find_chunks(directory))
    return Scanned(
        documents, paragraphs, signed, signatures, contaminated, np.concatenate(lines), total
    )


def _append(file: BinaryIO, array: np.ndarray) -> None:
    file.write(array.tobytes())


T = TypeVar("T")
Work = Callable[[Iterable[tuple[int, str, str]]], T]  # of documents: index, text, group


def results(work: Work[T], directory: Path, workers: int) -> Iterator[T]:
    """Yield what `work` returns for the documents of each row group, in order.

    Args:
        work: function of (index, text, group) tuples; it is pickled.
        directory: data/raw/pretrain.
        workers: number of processes.
    """
    chunks = find_chunks(directory, size=1)
    with Workers(min(workers, len(chunks))) as pool:
        yield from pool.ordered(partial(_of_chunks, work), chunks)


def _of_chunks(work: Work[T]) -> Callable[[Chunk], T]:
    def of_chunk(chunk: Chunk) -> T:
        table = read_chunk(chunk)
        rows = zip(table["text"].to_pylist(), table["group"].to_pylist(), strict=True)
        return work((chunk.start + i, *row) for i, row in enumerate(rows))

    return of_chunk

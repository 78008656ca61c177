"""What is to become of each document of `data/raw/pretrain`: known before the first is written, the
same ever after.

    plan = prepare(params.tokenize.clean, Path("data/raw/pretrain"), scratch, examples, workers)
    for index, text in enumerate(texts):        # in any order, in any process: a plan can be
    pickled
        cleaned = plan(index, text)             # cleaned.text is None where cleaned.removed names
        the rule

The rules that look at one document are applied on the spot; those that compare documents have been
decided by a pass over all of them, and are looked up by the document's place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llm.corpus.clean.duplicates import repeated, similar
from llm.corpus.clean.report import Tally
from llm.corpus.clean.rules import Cleaned, Cleaner, Edit
from llm.corpus.clean.scan import DOCUMENT, PARAGRAPH, Scanned, paragraphs, scan
from llm.errors import UserError
from llm.params import Clean
from llm.runtime.io import sha256, whole_directory
from llm.sources import raw
from llm.text.ngrams import Grams

FOLDER = "clean"  # in data/tokens
REMOVED = "removed.npy"  # (documents,) uint8
PARAGRAPHS, NUMBERS = (
    "paragraphs.npy",
    "paragraph_numbers.npy",
)  # (k,) uint64 place of the document; uint32
RULES = (
    "",
    "decontaminate",
    "exact_duplicates",
    "near_duplicates",
)  # of the numbers in removed.npy; "": it stays
PLACE = np.dtype([("index", "<u8"), ("number", "<u4")])


class Plan:
    """What becomes of each document."""

    def __init__(self, params: Clean, directory: Path | None) -> None:
        """directory: with the files that `prepare` wrote; None: no documents are compared.

        Raises:
            UserError: a language or region that the rules do not know.
        """
        self.params, self.directory, self.cleaner = params, directory, Cleaner(params)

    def __call__(self, index: int, text: str) -> Cleaned:
        """What becomes of the document at a place (from 0) of data/raw/pretrain."""
        if not self.params.active:
            return Cleaned(text)
        cleaned = self.cleaner(text)
        if cleaned.text is None or self.directory is None:
            return cleaned
        if rule := int(self._removed[index]):
            return Cleaned(None, RULES[rule], None, cleaned.text)
        first, last = np.searchsorted(
            self._paragraphs, np.array([index, index + 1], dtype=np.uint64)
        )
        if first == last:
            return cleaned
        numbers = set(self._numbers[first:last].tolist())
        left = "\n\n".join(
            part for i, part in enumerate(paragraphs(cleaned.text)) if i not in numbers
        )
        if not left.strip():
            return Cleaned(None, "duplicate_paragraphs", None, cleaned.text)
        return cleaned._replace(
            text=left,
            edits=(cleaned.edits or {})
            | {"duplicate_paragraphs": Edit(len(numbers), cleaned.text, left)},
        )

    def records(
        self, source: Path, columns: list[str] | None = None, tally: Tally | None = None
    ) -> Iterator[dict[str, Any]]:
        """The records of data/raw/pretrain that stay, with their text as it becomes; counted in
        `tally`.

        columns: those to read, `text` among them; None for all.
        """
        for index, record in enumerate(raw.read(source, columns)):
            cleaned = self(index, record["text"])
            if tally is not None:
                tally.add(index, record["text"], cleaned)
            if cleaned.text is not None:
                yield {**record, "text": cleaned.text}

    def digests(self) -> dict[str, Any]:
        """For meta.json: SHA-256 of the plan's files, by name; nothing where no documents were
        compared.
        """
        if self.directory is None:
            return {}
        return {
            "clean": {
                name: sha256(self.directory / name) for name in (REMOVED, PARAGRAPHS, NUMBERS)
            }
        }

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("params", "directory", "cleaner")}

    @cached_property
    def _removed(self) -> np.ndarray:
        return self._load(REMOVED)

    @cached_property
    def _paragraphs(self) -> np.ndarray:
        return self._load(PARAGRAPHS)

    @cached_property
    def _numbers(self) -> np.ndarray:
        return self._load(NUMBERS)

    def _load(self, name: str) -> np.ndarray:
        assert self.directory is not None
        try:
            array: np.ndarray = np.load(self.directory / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{self.directory / name} cannot be read ({error}). Run `dvc repro -sf tokenize` to write it again."
            ) from None
        return array


def prepare(
    params: Clean, source: Path, out: Path, examples: Iterable[str] | None = None, workers: int = 1
) -> Plan:
    """Compare the documents where a rule asks for it; the result is the same for any number of
    workers.

    Args:
        source: data/raw/pretrain.
        out: directory for removed.npy, paragraphs.npy and paragraph_numbers.npy; while the pass
            runs, its notes too.
        examples: texts of evaluation examples, for `decontaminate`.

    Raises:
        UserError: a language or region that the rules do not know; data/raw cannot be read; the
            disk is full.
    """
    if not params.compares:
        return Plan(params, None)
    grams = None
    if params.decontaminate:
        grams = Grams()
        for text in examples or ():
            grams.add(text)
        grams.freeze()
    with whole_directory(out, (REMOVED, PARAGRAPHS, NUMBERS)) as directory:
        scratch = directory / "scratch"
        scratch.mkdir()
        scanned = scan(params, source, scratch, grams, workers)
        removed, dropped = decide(params, scanned)
        np.save(directory / REMOVED, removed)
        np.save(directory / PARAGRAPHS, dropped["index"])
        np.save(directory / NUMBERS, dropped["number"])
        shutil.rmtree(scratch)
    return Plan(params, out)


def decide(params: Clean, scanned: Scanned) -> tuple[np.ndarray, np.ndarray]:
    """Number of the rule that removes each document (total,) uint8, and the places of repeated
    paragraphs, sorted.

    One after the other: a document with an evaluation example is no first of anything, nor is a
        repeated one.
    """
    removed = np.zeros(scanned.total, dtype=np.uint8)
    removed[scanned.contaminated] = RULES.index("decontaminate")
    if params.exact_duplicates:
        for batch in list(repeated(scanned.documents, DOCUMENT, removed)):
            removed[batch["index"]] = RULES.index("exact_duplicates")
    if near := params.near_duplicates:
        later = similar(scanned.signed, scanned.signatures, near.threshold, near.num_perm, removed)
        removed[later] = RULES.index("near_duplicates")
    dropped = [np.zeros(0, PLACE)]
    if params.duplicate_paragraphs:
        dropped += [
            batch[["index", "number"]].astype(PLACE)
            for batch in repeated(scanned.paragraphs, PARAGRAPH, removed)
        ]
    return removed, np.sort(np.concatenate(dropped), order=["index", "number"])


def written(params: Clean, tokens: Path) -> Plan:
    """The plan that `tokenize` followed, for who reads data/raw/pretrain after it.

    tokens: data/tokens.
    """
    return Plan(params, tokens / FOLDER if params.compares else None)

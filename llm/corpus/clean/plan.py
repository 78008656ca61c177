"""Plan of the cleaning: the fate of each document, decided before the first shard is written.

    plan = prepare(params.tokenize.clean, Path("data/raw/pretrain"), out, examples, workers)
    for index, text in enumerate(texts):  # any order, any process: a plan can be pickled
        cleaned = plan(index, text)  # cleaned.text is None if the rule cleaned.removed removed it

Rules that look at one document run when the plan is called. Rules that compare documents ran before
in a pass over all of them, and their decisions are looked up by the document's index.
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
PARAGRAPHS = "paragraphs.npy"  # (k,) uint64, the document of each repeated paragraph
NUMBERS = "paragraph_numbers.npy"  # (k,) uint32, its number in the document
# rules by their number in removed.npy; "": the document stays
RULES = ("", "decontaminate", "exact_duplicates", "near_duplicates")
REPEATED = np.dtype([("index", "<u8"), ("number", "<u4")])


class Plan:
    """The decision on each document."""

    def __init__(self, params: Clean, directory: Path | None) -> None:
        """Check the rules; the files are read at their first use.

        Args:
            params: the rules.
            directory: folder of the files that `prepare` wrote; None: no documents are compared.

        Raises:
            UserError: a language or region is unknown.
        """
        self.params, self.directory, self.cleaner = params, directory, Cleaner(params)

    def __call__(self, index: int, text: str) -> Cleaned:
        """Clean the document with this index (from 0) in data/raw/pretrain."""
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
        """Yield the records of data/raw/pretrain that stay, with their cleaned text.

        Args:
            source: data/raw/pretrain.
            columns: columns to read, `text` among them; None reads all.
            tally: counts the documents, if not None.
        """
        for index, record in enumerate(raw.read(source, columns)):
            cleaned = self(index, record["text"])
            if tally is not None:
                tally.add(index, record["text"], cleaned)
            if cleaned.text is not None:
                yield {**record, "text": cleaned.text}

    def digests(self) -> dict[str, Any]:
        """Return the plan's entry in meta.json, the SHA-256 of its files; empty without files."""
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
    """Compare the documents if a rule needs it; the number of workers does not change the result.

    Args:
        params: the rules.
        source: data/raw/pretrain.
        out: folder for removed.npy, paragraphs.npy and paragraph_numbers.npy; the pass also keeps
            its scratch files there.
        examples: texts of evaluation examples, for `decontaminate`.
        workers: number of processes.

    Raises:
        UserError: a language or region is unknown, data/raw cannot be read, or the disk is full.
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
    """Decide which documents and paragraphs the comparing rules remove.

    The rules run one after the other, so a later rule does not compare removed documents.

    Returns:
        The number of the rule that removes each document, (total,) uint8, and the repeated
        paragraphs, (k,) of REPEATED, sorted.
    """
    removed = np.zeros(scanned.total, dtype=np.uint8)
    removed[scanned.contaminated] = RULES.index("decontaminate")
    if params.exact_duplicates:
        for batch in list(repeated(scanned.documents, DOCUMENT, removed)):
            removed[batch["index"]] = RULES.index("exact_duplicates")
    if near := params.near_duplicates:
        later = similar(scanned.signed, scanned.signatures, near.threshold, near.num_perm, removed)
        removed[later] = RULES.index("near_duplicates")
    dropped = [np.zeros(0, REPEATED)]
    if params.duplicate_paragraphs:
        dropped += [
            batch[["index", "number"]].astype(REPEATED)
            for batch in repeated(scanned.paragraphs, PARAGRAPH, removed)
        ]
    return removed, np.sort(np.concatenate(dropped), order=["index", "number"])


def written(params: Clean, tokens: Path) -> Plan:
    """Return the plan that `tokenize` followed, for later stages that read data/raw/pretrain.

    Args:
        params: the rules.
        tokens: data/tokens.
    """
    return Plan(params, tokens / FOLDER if params.compares else None)

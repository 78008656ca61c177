"""Plan of the cleaning: the fate of each document, decided before the first shard is written.

    plan = prepare(params.tokenize.clean, Path("data/raw/pretrain"), out, examples, workers)
    for index, text in enumerate(texts):  # any order, any process: a plan can be pickled
        cleaned = plan(index, text)  # cleaned.text is None if the rule cleaned.removed removed it

Rules that look at one document run when the plan is called. Rules that compare documents ran before
in a pass over all of them, and their decisions are looked up by the document's index.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llm.corpus.clean.duplicates import repeated, similar
from llm.corpus.clean.overlap import HeldOutTexts, lowest, without_lines
from llm.corpus.clean.report import Tally
from llm.corpus.clean.rules import Cleaned, Cleaner, Edit
from llm.corpus.clean.scan import DOCUMENT, LINE, PARAGRAPH, Scanned, paragraphs, results, scan
from llm.errors import UserError
from llm.params import Clean
from llm.runtime.io import sha256, whole_directory
from llm.sources import raw
from llm.text.hashing import is_held_out
from llm.text.ngrams import Grams

FOLDER = "clean"  # in data/tokens
REMOVED = "removed.npy"  # (documents,) uint8
LINES = "lines.npy"  # (k,) uint64, the document of each line that `decontaminate` cuts
LINE_NUMBERS = "line_numbers.npy"  # (k,) uint32, its number in the document
PARAGRAPHS = "paragraphs.npy"  # (k,) uint64, the document of each repeated paragraph
NUMBERS = "paragraph_numbers.npy"  # (k,) uint32, its number in the document
FILES = (REMOVED, LINES, LINE_NUMBERS, PARAGRAPHS, NUMBERS)
# rules by their number in removed.npy; "": the document stays
RULES = ("", "decontaminate", "exact_duplicates", "near_duplicates")


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
        self._files: dict[str, np.ndarray] = {}

    def __call__(self, index: int, text: str) -> Cleaned:
        """Clean the document with this index (from 0) in data/raw/pretrain."""
        if not self.params.active:
            return Cleaned(text)
        cleaned = self.cleaner(text)
        if cleaned.text is None or self.directory is None:
            return cleaned
        if rule := int(self._file(REMOVED)[index]):
            return Cleaned(None, RULES[rule], None, cleaned.text)
        if lines := self._numbers_of(index, LINES, LINE_NUMBERS):
            cleaned = _edited(
                cleaned, "decontaminate", len(lines), partial(without_lines, numbers=lines)
            )
        if numbers := self._numbers_of(index, PARAGRAPHS, NUMBERS):
            cleaned = _edited(
                cleaned,
                "duplicate_paragraphs",
                len(numbers),
                partial(_without_paragraphs, numbers=numbers),
            )
        return cleaned

    def records(
        self,
        source: Path,
        columns: list[str] | None = None,
        tally: Tally | None = None,
        val_fraction: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Yield the records of data/raw/pretrain that stay, with their cleaned text.

        Args:
            source: data/raw/pretrain.
            columns: columns to read, `text` among them; None reads all.
            tally: counts the documents, if not None.
            val_fraction: share of held-out documents; if not None, records say whether they are
                `held_out`.
        """
        for index, record in enumerate(raw.read(source, columns)):
            cleaned = self(index, record["text"])
            if tally is not None:
                tally.add(index, record["text"], cleaned)
            if cleaned.text is None:
                continue
            side = {}
            if val_fraction is not None:
                side["held_out"] = is_held_out(record["group"], record["text"], val_fraction)
            yield {**record, "text": cleaned.text, **side}

    def digests(self) -> dict[str, Any]:
        """Return the plan's entry in meta.json, the SHA-256 of its files; empty without files."""
        if self.directory is None:
            return {}
        return {"clean": {name: sha256(self.directory / name) for name in FILES}}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}}

    def _numbers_of(self, index: int, documents: str, numbers: str) -> list[int]:
        """Return the numbers that a pair of files holds for a document."""
        bounds = np.array([index, index + 1], dtype=np.uint64)
        first, last = np.searchsorted(self._file(documents), bounds)
        return [] if first == last else self._file(numbers)[first:last].tolist()

    def _file(self, name: str) -> np.ndarray:
        if name not in self._files:
            self._files[name] = self._load(name)
        return self._files[name]

    def _load(self, name: str) -> np.ndarray:
        assert self.directory is not None
        try:
            array: np.ndarray = np.load(self.directory / name, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{self.directory / name} cannot be read ({error}). Run `dvc repro -sf tokenize` to write it again."
            ) from None
        return array


def _edited(cleaned: Cleaned, rule: str, number: int, edit: Callable[[str], str]) -> Cleaned:
    """Return the document after a rule took parts of it out; nothing left: it is removed."""
    before = cleaned.text
    if before is None:
        return cleaned
    left = edit(before)
    if not left.strip():
        return Cleaned(None, rule, None, before)
    return cleaned._replace(
        text=left, edits=(cleaned.edits or {}) | {rule: Edit(number, before, left)}
    )


def _without_paragraphs(text: str, numbers: Iterable[int]) -> str:
    cut = set(numbers)
    return "\n\n".join(part for i, part in enumerate(paragraphs(text)) if i not in cut)


def prepare(
    params: Clean,
    source: Path,
    out: Path,
    examples: Iterable[str] = (),
    workers: int = 1,
    val_fraction: float = 0.0,
) -> Plan:
    """Compare the documents if a rule needs it; the number of workers does not change the result.

    Args:
        params: the rules.
        source: data/raw/pretrain.
        out: folder for the files of the plan; the pass also keeps its scratch files there.
        examples: texts of the tasks' test and validation examples, for `decontaminate`.
        workers: number of processes.
        val_fraction: share of held-out documents, for `decontaminate` too.

    Raises:
        UserError: a language or region is unknown, data/raw cannot be read, or the disk is full.
    """
    if not params.compares:
        return Plan(params, None)
    grams = held_out_runs(params, source, examples, val_fraction, workers)
    with whole_directory(out, FILES) as directory:
        scratch = directory / "scratch"
        scratch.mkdir()
        scanned = scan(params, source, scratch, grams, val_fraction, workers)
        removed, dropped = decide(params, scanned)
        np.save(directory / REMOVED, removed)
        for array, documents, numbers in (
            (scanned.lines, LINES, LINE_NUMBERS),
            (dropped, PARAGRAPHS, NUMBERS),
        ):
            np.save(directory / documents, array["index"])
            np.save(directory / numbers, array["number"])
        shutil.rmtree(scratch)
    return Plan(params, out)


def held_out_runs(
    params: Clean, source: Path, examples: Iterable[str], val_fraction: float, workers: int = 1
) -> Grams | None:
    """Return the runs of 13 words that no training text may have; None without `decontaminate`.

    They are those of the examples and of the held-out documents. For the arguments see `prepare`.
    """
    if not params.decontaminate:
        return None
    chosen = results(HeldOutTexts(params, val_fraction), source, workers)
    documents, total = lowest(chain.from_iterable(chosen))
    if len(documents) < total:
        print(
            f"warning: decontaminate compares with {len(documents):,} of {total:,} held-out documents, those that "
            "evaluation reads first. Lower tokenize.val_fraction to compare with all.",
            file=sys.stderr,
            flush=True,
        )
    grams = Grams()
    for text in chain(examples, documents):
        grams.add(text)
    grams.freeze()
    return grams


def decide(params: Clean, scanned: Scanned) -> tuple[np.ndarray, np.ndarray]:
    """Decide which documents and paragraphs the comparing rules remove.

    The rules run one after the other, so a later rule does not compare removed documents.

    Returns:
        The number of the rule that removes each document, (total,) uint8, and the repeated
        paragraphs, (k,) of LINE (their numbers in place of lines'), sorted.
    """
    removed = np.zeros(scanned.total, dtype=np.uint8)
    removed[scanned.contaminated] = RULES.index("decontaminate")
    if params.exact_duplicates:
        for batch in list(repeated(scanned.documents, DOCUMENT, removed)):
            removed[batch["index"]] = RULES.index("exact_duplicates")
    if near := params.near_duplicates:
        later = similar(scanned.signed, scanned.signatures, near.threshold, near.num_perm, removed)
        removed[later] = RULES.index("near_duplicates")
    dropped = [np.zeros(0, LINE)]
    if params.duplicate_paragraphs:
        dropped += [
            batch[["index", "number"]].astype(LINE)
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

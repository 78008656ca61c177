"""The embedded source `docs`: the documentation of the installed packages, as text and as tasks.

Nothing is imported or executed. The corpus depends only on the versions of Python and of the
packages, and not on other packages, directory order, the hash seed or the checkout's path.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.runtime.pool import Workers, cores
from llm.sources.docs import dedup, questions, split
from llm.sources.docs.records import classification, summarization
from llm.sources.docs.scan import (
    DISTRIBUTIONS,
    PACKAGES,
    PYTHON,
    Corpus,
    Entry,
    module_entries,
    source_files,
    topics,
)

MIN_DOCUMENT_CHARACTERS = 100
DOCUMENT_CHARACTERS = 3000  # a module's documentation is cut into documents of about this length
FILES_AT_A_TIME = 50  # parsed by one process
KINDS = ("pretrain", "summarization", "question_answering", "classification")


def records(
    kind: str, packages: list[str] | None = None
) -> tuple[Iterator[dict[str, Any]], dict[str, Any]]:
    """Return raw records of a kind by id, and a dict that is complete once they are exhausted.

    Args:
        kind: one of `KINDS`; the fields of a record are those of `data/raw` (see
            `llm.sources.raw`).
        packages: import names, "python" for the whole standard library; None for `PACKAGES`.

    Raises:
        UserError: the kind does not exist, or a package is not installed.
    """
    if kind not in KINDS:
        raise UserError(
            f"the source `docs` has no records of kind {kind!r}; it has {', '.join(KINDS)}."
        )
    chosen = tuple(dict.fromkeys(packages or PACKAGES))
    info: dict[str, Any] = {
        "kept": {},
        "dropped": {},
        "licence": "; ".join(f"{name}: {licence(name)}" for name in chosen),
        "revision": ", ".join([f"Python {platform.python_version()}", *versions(chosen)]),
        "notes": "Docstrings of the installed packages, read with ast, never imported. "
        f"Near duplicates: MinHash-LSH, {dedup.SHINGLE_WORDS}-word shingles, "
        f"{dedup.PERMUTATIONS} permutations, Jaccard {dedup.JACCARD}; "
        f"between modules of a task {split.NEAR}.",
    }
    return _records(kind, chosen, info), info


def _records(
    kind: str, packages: tuple[str, ...], info: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    scanned = corpus(packages)
    dropped = Counter(scanned.dropped)
    build: Callable[[Corpus, Counter[str], dict[str, Any]], list[dict[str, Any]]] = {
        "pretrain": pretrain,
        "summarization": summarization,
        "question_answering": questions.question_answering,
        "classification": classification,
    }[kind]
    info["kept"] |= {"modules": scanned.modules, "docstrings": len(scanned.entries)}
    rows = build(scanned, dropped, info["kept"])
    info["kept"]["records"] = len(rows)
    info["dropped"] |= dict(sorted(dropped.items()))
    yield from rows


def pretrain(scanned: Corpus, dropped: Counter[str], kept: dict[str, Any]) -> list[dict[str, Any]]:
    """Return documents of a few thousand characters: modules in source order, and Python's topics.

    The first entry of a document has its full name, the others the name inside the module.
    """
    rows = []
    characters: Counter[str] = Counter()
    modules: dict[str, list[Entry]] = {}
    for entry in [*scanned.entries, *scanned.topics]:
        modules.setdefault(entry.module, []).append(entry)
    for module, entries in modules.items():
        if split.split_of(module) == "test":
            dropped["docstring: of a module that the tasks are tested on"] += len(entries)
            continue
        documents: list[list[str]] = [[]]
        for entry in entries:
            text = entry.text(entry.short if documents[-1] else entry.name)
            if documents[-1] and sum(map(len, documents[-1])) + len(text) > DOCUMENT_CHARACTERS:
                documents.append([])
                text = entry.text(entry.name)
            documents[-1].append(text)
        for number, parts in enumerate(documents):
            text = "\n\n".join(parts)
            if len(text) < MIN_DOCUMENT_CHARACTERS:
                dropped[f"document under {MIN_DOCUMENT_CHARACTERS} characters"] += 1
                continue
            package = entries[0].package
            characters[package] += len(text)
            place = split.stamp(f"{module}#{number}")
            rows.append({"id": place, "text": text, "source": package, "group": module})
    kept["characters"] = dict(characters)
    return sorted(rows, key=lambda row: row["id"])


# -- extraction


@functools.cache
def corpus(packages: tuple[str, ...]) -> Corpus:
    """Read, parse and deduplicate; cached, so that the four kinds share one scan."""
    result = Corpus()
    entries: list[Entry] = []
    files = [(name, *file) for name in packages for file in source_files(name, result.dropped)]
    result.modules = len(files)
    starts = range(0, len(files), FILES_AT_A_TIME)
    parts = [files[start : start + FILES_AT_A_TIME] for start in starts]
    with Workers(min(cores(), len(parts))) as workers:
        for scanned, dropped in workers.ordered(_scanner, parts):
            entries += scanned
            result.dropped += dropped
    entries = dedup.drop_repeated_paragraphs(entries, result.dropped)
    result.entries = dedup.drop_near_duplicates(entries, result.dropped)
    if PYTHON in packages:
        result.topics = dedup.drop_near_duplicates(topics(result.dropped), result.dropped)
    return result


def _scanner() -> Callable[[list[tuple[str, str, Path]]], tuple[list[Entry], Counter[str]]]:
    return _scan


def _scan(files: list[tuple[str, str, Path]]) -> tuple[list[Entry], Counter[str]]:
    """Return the entries of the files, and counts of dropped text."""
    dropped: Counter[str] = Counter()
    return [entry for file in files for entry in module_entries(*file, dropped)], dropped


# -- provenance


def versions(packages: Iterable[str]) -> list[str]:
    """Return `distribution==version` of each package outside the standard library."""
    out = []
    for package in packages:
        if package != PYTHON and package not in sys.stdlib_module_names:
            name = DISTRIBUTIONS.get(package, package)
            try:
                # Without the build's tag (torch's +cpu).
                version = importlib.metadata.version(name).partition("+")[0]
            except importlib.metadata.PackageNotFoundError:
                version = "unknown"
            out.append(f"{name}=={version}")
    return out


def licence(package: str) -> str:
    """Return the package's licence from its own metadata, in a few words."""
    if package == PYTHON or package in sys.stdlib_module_names:
        return "PSF-2.0"
    try:
        stated = importlib.metadata.metadata(DISTRIBUTIONS.get(package, package)).json
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
    for key in ("license_expression", "license"):
        if 0 < len(stated.get(key, "")) < 100:
            return str(stated[key])
    classifiers = [item for item in stated.get("classifier", []) if item.startswith("License")]
    return ", ".join(item.rsplit(" :: ", 1)[-1] for item in classifiers) or "see the package"

"""Removal of repeated and nearly repeated documentation; the first of each is kept."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from llm.sources.docs.docstrings import Doc
from llm.sources.docs.scan import Entry
from llm.text.minhash import MIN_WORDS, minhashes

SHINGLE_WORDS = 3  # near duplicates: sets of three consecutive words, MinHash with 64 permutations,
PERMUTATIONS = 64
JACCARD = 0.7  # dropped from this estimated similarity on
MIN_REPEATED = 40  # characters from which a repeated paragraph is dropped; shorter ones may recur


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers, which are compared to find duplicates."""
    return re.findall(r"[a-z0-9]+", text.lower())


def drop_repeated_paragraphs(entries: list[Entry], dropped: Counter[str]) -> list[Entry]:
    """Keep the first of equal paragraphs and field descriptions, and drop empty entries."""
    seen: set[bytes] = set()

    def fresh(text: str) -> bool:
        if len(text) < MIN_REPEATED:
            return True
        key = hashlib.blake2b(" ".join(words(text)).encode(), digest_size=12).digest()
        if key in seen:
            dropped["paragraph: repeated"] += 1
            return False
        seen.add(key)
        return True

    kept = []
    for entry in entries:
        doc = entry.doc
        summary = doc.summary if fresh(doc.summary) else ""
        body, notes = ([text for text in texts if fresh(text)] for texts in (doc.body, doc.notes))
        fields = [item for item in doc.fields if fresh(item.text)]
        if not summary and body and not fields:
            summary, body = body[0], body[1:]
        if len(summary) + sum(map(len, body)) + sum(len(item.text) for item in fields) < 30:
            dropped["docstring: under 30 characters or repeated"] += 1
            continue
        kept.append(replace(entry, doc=Doc(summary, body, fields, notes)))
    return kept


def drop_near_duplicates(entries: list[Entry], dropped: Counter[str]) -> list[Entry]:
    """Keep the first of similar entries."""
    keep = near_duplicates([entry.text("") for entry in entries])
    dropped["docstring: near duplicate"] += len(entries) - sum(keep)
    return [entry for entry, good in zip(entries, keep, strict=True) if good]


def near_duplicates(
    texts: Iterable[str], groups: Iterable[str] | None = None, threshold: float = JACCARD
) -> list[bool]:
    """Return whether to keep each text: not if an earlier kept one (of another group) is similar.

    MinHash-LSH (Broder 1997) over word shingles; candidates are confirmed by the estimated Jaccard
    similarity. Texts under eight words are kept.
    """
    from datasketch import MinHashLSH

    lines = [words(text) for text in texts]
    names = list(groups) if groups is not None else [str(number) for number in range(len(lines))]
    index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS)
    hashes: dict[int, Any] = {}
    keep = []
    for number, minhash in enumerate(minhashes(lines, SHINGLE_WORDS, PERMUTATIONS)):
        good = len(lines[number]) < MIN_WORDS or not any(
            names[other] != names[number] and minhash.jaccard(hashes[other]) >= threshold
            for other in index.query(minhash)
        )
        if good and len(lines[number]) >= MIN_WORDS:
            index.insert(number, minhash)
            hashes[number] = minhash
        keep.append(good)
    return keep

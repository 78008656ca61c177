"""Duplicates in files of digests and signatures that may be larger than memory.

The values are split into parts that fit in the budget, and the file is read once for each part.
Sorting a part brings equal digests together. The result does not depend on the number of parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm.text.minhash import bands

BUDGET = 256 << 20  # bytes of records sorted at a time; sorting takes about twice as much again
CHUNK = 1 << 16  # records read at a time
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def repeated(path: Path, dtype: np.dtype, removed: np.ndarray) -> Iterator[np.ndarray]:
    """Yield, in batches, the records whose digest an earlier record has.

    Args:
        path: file of records, in the order of the documents.
        dtype: type of a record, with fields `high`, `low` and `index`.
        removed: (documents,) uint8; records of documents that are not 0 here are skipped.
    """
    records = _map(path, dtype)
    parts = max(1, -(-records.nbytes // BUDGET))
    for part in range(parts):
        chosen = []
        for chunk in _chunks(records):
            chunk = chunk[removed[chunk["index"]] == 0]
            chosen.append(chunk[_part(chunk["high"], parts) == part] if parts > 1 else chunk)
        batch = np.concatenate([np.zeros(0, dtype), *chosen])
        # A stable sort, so the first document of equal ones comes first.
        batch = batch[np.lexsort((batch["low"], batch["high"]))]
        is_repeat = np.zeros(len(batch), dtype=bool)
        is_repeat[1:] = (batch["high"][1:] == batch["high"][:-1]) & (
            batch["low"][1:] == batch["low"][:-1]
        )
        yield batch[is_repeat]


def similar(
    signed: Path, signatures: Path, threshold: float, num_perm: int, removed: np.ndarray
) -> np.ndarray:
    """Return the sorted indices (k,) uint64 of documents that are similar to an earlier one.

    Documents that agree in a band of their signatures are candidates. A candidate is compared with
    the first one in its bucket and with the one before it. The share of equal values estimates the
    Jaccard similarity; pairs that reach the threshold are joined. The first document of each group
    of joined ones stays.

    Args:
        signed: file of the indices of documents with a signature, uint64.
        signatures: file of the signatures, (signed documents, num_perm) uint32.
        threshold: least similarity of a pair.
        num_perm: values of a signature.
        removed: (documents,) uint8; documents that are not 0 here are skipped.
    """
    indices = _map(signed, np.dtype("<u8"))
    values = _map(signatures, np.dtype("<u4")).reshape(-1, num_perm)
    live = np.concatenate(
        [np.zeros(0, dtype=np.int64)]
        + [
            np.flatnonzero(removed[indices[start : start + CHUNK]] == 0) + start
            for start in range(0, len(indices), CHUNK)
        ]
    )
    parent = np.arange(len(indices), dtype=np.int64)
    count, rows = bands(threshold, num_perm)
    parts = max(1, -(-len(live) * 16 // BUDGET))
    for band in range(count):
        for part in range(parts):
            keys, owners = _band(values, live, band * rows, rows, part, parts)
            for one, other in _candidates(keys, owners):
                close = np.mean(values[one] == values[other], axis=1) >= threshold
                for a, b in zip(one[close].tolist(), other[close].tolist(), strict=True):
                    _join(parent, a, b)
    return np.sort(indices[np.flatnonzero(parent != np.arange(len(parent)))])


def _band(
    values: np.ndarray, live: np.ndarray, start: int, rows: int, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of one band that fall into a part, and the signatures they belong to."""
    keys, owners = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(live), CHUNK):
        own = live[first : first + CHUNK]
        hashes = np.zeros(len(own), dtype=np.uint64)
        for column in values[own, start : start + rows].T.astype(np.uint64):
            hashes = (hashes ^ column) * MULTIPLIER
            hashes ^= hashes >> np.uint64(32)
        inside = _part(hashes, parts) == part
        keys.append(hashes[inside])
        owners.append(own[inside])
    return np.concatenate(keys), np.concatenate(owners)


def _candidates(keys: np.ndarray, owners: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield pairs with equal keys as two arrays.

    Each entry of a bucket is paired with the first of the bucket and with the one before it.
    """
    order = np.argsort(keys, kind="stable")
    keys, owners = keys[order], owners[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    repeats = np.flatnonzero(~new)
    for start in range(0, len(repeats), CHUNK >> 4):
        part = repeats[start : start + (CHUNK >> 4)]
        yield owners[first[part]], owners[part]
        third = part[first[part] != part - 1]
        yield owners[third - 1], owners[third]


def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _join(parent: np.ndarray, a: int, b: int) -> None:
    """Join two groups; the lower number, the first document, is the root."""
    a, b = _root(parent, a), _root(parent, b)
    if a != b:
        parent[max(a, b)] = min(a, b)


def _part(values: np.ndarray, parts: int) -> np.ndarray:
    return values % np.uint64(parts)


def _chunks(records: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(records), CHUNK):
        yield records[start : start + CHUNK]


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """Map a file's records into memory; an empty file cannot be mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)

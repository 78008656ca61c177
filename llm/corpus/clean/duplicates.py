"""Equal digests and similar signatures in files that may be larger than memory: which of them are
not the first.

A file is read once for each of so many parts that one part's digests, those in one range of values,
fit in the budget; sorted within a part, equal ones are neighbours. The result does not depend on
the number of parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from llm.text.minhash import bands

BUDGET = (
    256 << 20
)  # bytes of records that are sorted at a time; sorting takes about as much again, twice
CHUNK = 1 << 16  # records read at a time
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def repeated(path: Path, dtype: np.dtype, removed: np.ndarray) -> Iterator[np.ndarray]:
    """Records whose digest an earlier one has, in batches.

    Args:
        path: records of `dtype`, with `high`, `low` and `index`, in the order of the documents.
        removed: (documents,) uint8; records of documents that are not 0 here are left out.
    """
    records = _map(path, dtype)
    parts = max(1, -(-records.nbytes // BUDGET))
    for part in range(parts):
        chosen = []
        for chunk in _chunks(records):
            chunk = chunk[removed[chunk["index"]] == 0]
            chosen.append(chunk[_part(chunk["high"], parts) == part] if parts > 1 else chunk)
        batch = np.concatenate([np.zeros(0, dtype), *chosen])
        # Stable, so that of equal digests the first document's comes first.
        batch = batch[np.lexsort((batch["low"], batch["high"]))]
        again = np.zeros(len(batch), dtype=bool)
        again[1:] = (batch["high"][1:] == batch["high"][:-1]) & (
            batch["low"][1:] == batch["low"][:-1]
        )
        yield batch[again]


def similar(
    signed: Path, signatures: Path, threshold: float, num_perm: int, removed: np.ndarray
) -> np.ndarray:
    """Places (k,) uint64 of the documents that are like an earlier one, sorted.

    Documents that agree in a band of their signatures are candidates; a candidate is compared with
    the first and with the one before it in its bucket, by the share of equal values, which
    estimates the Jaccard similarity. Those that reach the threshold belong together, and so do
    those that are like a third: of each such group the first is kept."""
    places = _map(signed, np.dtype("<u8"))
    values = _map(signatures, np.dtype("<u4")).reshape(-1, num_perm)
    live = np.concatenate(
        [np.zeros(0, dtype=np.int64)]
        + [
            np.flatnonzero(removed[places[start : start + CHUNK]] == 0) + start
            for start in range(0, len(places), CHUNK)
        ]
    )
    parent = np.arange(len(places), dtype=np.int64)
    count, rows = bands(threshold, num_perm)
    parts = max(1, -(-len(live) * 16 // BUDGET))
    for band in range(count):
        for part in range(parts):
            keys, at = _band(values, live, band * rows, rows, part, parts)
            for one, other in _candidates(keys, at):
                close = np.mean(values[one] == values[other], axis=1) >= threshold
                for a, b in zip(one[close].tolist(), other[close].tolist(), strict=True):
                    _join(parent, a, b)
    return np.sort(places[np.flatnonzero(parent != np.arange(len(parent)))])


def _band(
    values: np.ndarray, live: np.ndarray, start: int, rows: int, part: int, parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of one band of the signatures that fall into a part, and whose they are."""
    keys, at = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for first in range(0, len(live), CHUNK):
        own = live[first : first + CHUNK]
        hashes = np.zeros(len(own), dtype=np.uint64)
        for column in values[own, start : start + rows].T.astype(np.uint64):
            hashes = (hashes ^ column) * MULTIPLIER
            hashes ^= hashes >> np.uint64(32)
        inside = _part(hashes, parts) == part
        keys.append(hashes[inside])
        at.append(own[inside])
    return np.concatenate(keys), np.concatenate(at)


def _candidates(keys: np.ndarray, at: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs with one key, as two arrays: each entry of a bucket with the bucket's first and with
    the one before.
    """
    order = np.argsort(keys, kind="stable")
    keys, at = keys[order], at[order]
    new = np.ones(len(keys), dtype=bool)
    new[1:] = keys[1:] != keys[:-1]
    first = np.maximum.accumulate(np.where(new, np.arange(len(keys)), 0))
    again = np.flatnonzero(~new)
    for start in range(0, len(again), CHUNK >> 4):
        some = again[start : start + (CHUNK >> 4)]
        yield at[first[some]], at[some]
        third = some[first[some] != some - 1]
        yield at[third - 1], at[third]


def _root(parent: np.ndarray, i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = int(parent[i])
    return i


def _join(parent: np.ndarray, a: int, b: int) -> None:
    """The lower number is the root: the first document of a group."""
    a, b = _root(parent, a), _root(parent, b)
    if a != b:
        parent[max(a, b)] = min(a, b)


def _part(values: np.ndarray, parts: int) -> np.ndarray:
    return values % np.uint64(parts)


def _chunks(records: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(records), CHUNK):
        yield records[start : start + CHUNK]


def _map(path: Path, dtype: np.dtype) -> np.ndarray:
    """A file's records, in memory only where they are touched; an empty file cannot be mapped."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)

"""MinHash signatures of word shingles, by datasketch: near duplicates agree in most of their values.

Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

MIN_WORDS = 8  # of a text that is compared with others
AT_A_TIME = 4096  # shingles hashed together: their hashes take 4 · num_perm bytes each


def minhashes(lines: Iterable[Iterable[str]], ngram: int, num_perm: int) -> Iterator[Any]:
    """A `datasketch.MinHash` for each sequence of words: of the set of its runs of `ngram` words, hashed by CRC-32.

    A sequence of fewer words is a run by itself. Words are taken as they come: a long text is never held as a list.
    """
    from datasketch import MinHash

    empty = MinHash(num_perm=num_perm, hashfunc=zlib.crc32)
    for line in lines:
        minhash = empty.copy()
        run: list[str] = []
        shingles: list[bytes] = []
        for word in line:
            run.append(word)
            if len(run) > ngram:
                del run[0]
            if len(run) == ngram:
                shingles.append(" ".join(run).encode())
                if len(shingles) == AT_A_TIME:
                    minhash.update_batch(shingles)
                    shingles = []
        if len(run) < ngram:
            shingles.append(" ".join(run).encode())
        if shingles:
            minhash.update_batch(shingles)
        yield minhash


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows of a band, as datasketch's LSH chooses them for a similarity threshold.

    False candidates and missed ones weigh the same; candidates are compared by their whole signatures afterwards.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=num_perm)
    return int(index.b), int(index.r)

"""MinHash signatures of word shingles, by datasketch: near duplicates agree in most of their values.

Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, chapter 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

MIN_WORDS = 8  # of a text that is compared with others


def minhashes(lines: Iterable[list[str]], ngram: int, num_perm: int) -> Iterator[Any]:
    """A `datasketch.MinHash` for each list of words: of the set of its runs of `ngram` words, hashed by CRC-32."""
    from datasketch import MinHash

    shingles = (
        [" ".join(line[i : i + ngram]).encode() for i in range(max(1, len(line) - ngram + 1))] for line in lines
    )
    yield from MinHash.generator(shingles, num_perm=num_perm, hashfunc=zlib.crc32)


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows of a band, as datasketch's LSH chooses them for a similarity threshold.

    False candidates and missed ones weigh the same; candidates are compared by their whole signatures afterwards.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=num_perm)
    return int(index.b), int(index.r)

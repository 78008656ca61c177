"""MinHash signatures of word shingles, by datasketch: near duplicates agree in most of their
values.

Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

MIN_WORDS = 8  # of a text that is compared with others
AT_A_TIME = 4096  # shingles hashed together: their hashes take 4 · num_perm bytes each


def minhashes(lines: Iterable[Iterable[str]], ngram: int, num_perm: int) -> Iterator[Any]:
    """A `datasketch.MinHash` for each sequence of words: of the set of its runs of `ngram` words,
    hashed by CRC-32.

    A sequence of fewer words is a run by itself. Words are taken as they come: a long text is never
    held as a list."""
    from datasketch import MinHash

    empty = MinHash(num_perm=num_perm, hashfunc=zlib.crc32)
    for line in lines:
        minhash, rest, known = empty.copy(), iter(line), 0
        run: list[str] = []  # the last words so far, of which the next shingles are made
        while block := list(islice(rest, AT_A_TIME)):
            known += len(block)
            run += block
            shingles = [
                " ".join(words).encode()
                for words in zip(*(run[i:] for i in range(ngram)), strict=False)
            ]
            if shingles:
                minhash.update_batch(shingles)
            run = run[max(0, len(run) - ngram + 1) :]
        if known < ngram:
            minhash.update_batch([" ".join(run).encode()])
        yield minhash


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Bands and rows of a band, as datasketch's LSH chooses them for a similarity threshold.

    A missed pair weighs nineteen times a false candidate, which costs no more than a comparison of
    signatures."""
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=(0.05, 0.95))
    return int(index.b), int(index.r)

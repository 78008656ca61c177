"""MinHash signatures of word shingles, by datasketch; near duplicates agree in most values.

Broder 1997, "On the resemblance and containment of documents"; banding: Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

MIN_WORDS = 8  # shorter texts are not compared
AT_A_TIME = 4096  # shingles hashed together: the hashes of each take 4 · num_perm bytes


def minhashes(lines: Iterable[Iterable[str]], ngram: int, num_perm: int) -> Iterator[Any]:
    """Yield a `datasketch.MinHash` for each sequence of words.

    It is computed from the set of runs of `ngram` words, hashed by CRC-32. A shorter sequence is
    one run. Words are read one block at a time, so a long text is never in memory as a list.
    """
    from datasketch import MinHash

    empty = MinHash(num_perm=num_perm, hashfunc=zlib.crc32)
    for line in lines:
        minhash, rest, count = empty.copy(), iter(line), 0
        run: list[str] = []  # the last words so far, with which the next shingles begin
        while block := list(islice(rest, AT_A_TIME)):
            count += len(block)
            run += block
            shingles = [
                " ".join(words).encode()
                for words in zip(*(run[i:] for i in range(ngram)), strict=False)
            ]
            if shingles:
                minhash.update_batch(shingles)
            run = run[max(0, len(run) - ngram + 1) :]
        if count < ngram:
            minhash.update_batch([" ".join(run).encode()])
        yield minhash


def bands(threshold: float, num_perm: int) -> tuple[int, int]:
    """Return the bands and rows per band that datasketch's LSH chooses for a similarity threshold.

    A missed pair weighs 19 times as much as a false candidate, which only costs a comparison of
    signatures.
    """
    from datasketch import MinHashLSH

    index = MinHashLSH(threshold=threshold, num_perm=num_perm, weights=(0.05, 0.95))
    return int(index.b), int(index.r)

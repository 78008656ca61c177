"""Order of the data: a pure function of (seed, step) that needs no array of all samples.

It does not depend on the number of devices. Each epoch visits every sample once, in its own order.
"""

from __future__ import annotations

import numpy as np

_MASK = (1 << 64) - 1
# rounds of the Feistel network; four already make a pseudorandom permutation
ROUNDS = 6


def _mix(x: np.ndarray) -> np.ndarray:
    """Apply SplitMix64's finalizer (Steele, Lea and Flood 2014, doi:10.1145/2660193.2660195), on uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: np.ndarray, n: int, key: int) -> np.ndarray:
    """Return the images of `indices` under a random permutation of range(n).

    A Feistel network over the smallest even number of bits that holds n (Luby and Rackoff 1988),
    walked along its cycles until it lands below n (Black and Rogaway 2002, "Ciphers with arbitrary
    finite domains"): a bijection on range(n), computed for the asked indices alone.

    Args:
        indices: integers in range(n), any shape.
        n: number of samples.
        key: chooses the permutation.

    Returns:
        int64 array in the shape of `indices`.
    """
    indices = np.asarray(indices)
    if n < 1 or (indices.size and (indices.min() < 0 or indices.max() >= n)):
        raise ValueError(f"indices must lie in range({n})")
    half = np.uint64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    keys = _mix(
        np.uint64(key & _MASK)
        + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    )
    values = indices.astype(np.uint64).ravel()
    outside = np.ones(values.shape, dtype=bool)
    while outside.any():
        left, right = values[outside] >> half, values[outside] & low
        for round_key in keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        values[outside] = (left << half) | right
        outside = values >= np.uint64(n)
    return values.astype(np.int64).reshape(indices.shape)


def batch_ids(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
    """Return the sample ids of a step's global batch, int64 (batch_size,).

    Batches follow one another through the epochs without a gap, so a batch may straddle two epochs.
    """
    position = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epochs, within = position // n, position % n
    ids = np.empty(batch_size, dtype=np.int64)
    for epoch in np.unique(epochs):
        mask = epochs == epoch
        ids[mask] = permute(within[mask], n, _epoch_key(seed, int(epoch)))
    return ids


def _epoch_key(seed: int, epoch: int) -> int:
    mixed = _mix(np.array([seed & _MASK], dtype=np.uint64))
    return int(_mix(mixed + np.array([epoch], dtype=np.uint64))[0])

"""Pairs of answers to one prompt, of which one is preferred, packed into rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llm.data.packing import pack


class Pair(NamedTuple):
    """Token ids of a prompt, and of its two answers, which end with the end token."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def tokens(self) -> int:
        """The tokens of both sequences; the prompt stands in each."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


class PairRows(NamedTuple):
    """Rows of pairs; every array is (rows, capacity)."""

    tokens: np.ndarray  # int64; padding is the end token
    targets: np.ndarray  # int64; the next token of an answer, -100 elsewhere
    segments: np.ndarray  # int32; 1 … 2k by sequence, 0 for padding
    positions: np.ndarray  # int64; from 0 in each sequence
    # int64; at targets: 2p + 1 for the chosen answer of pair p of the row, 2p + 2 for the rejected
    # one; 0 elsewhere
    answers: np.ndarray
    # float32; at an answer's first target the reference model's log-probability of the answer
    reference: np.ndarray


class PackedPairs:
    """Pairs in rows of `capacity` tokens: both sequences of a pair lie in the same row."""

    def __init__(self, pairs: Sequence[Pair], capacity: int, eos_id: int, seed: int) -> None:
        """Pack the pairs.

        Args:
            pairs: at most `capacity` tokens each.
            capacity: tokens of a row.
            eos_id: id of the end token, which pads the rows.
            seed: decides the order of packing.
        """
        self.pairs, self.capacity, self.eos_id = pairs, capacity, eos_id
        self.packed = pack(np.array([pair.tokens for pair in pairs]), capacity, seed)
        self.num_rows = len(self.packed)
        # log-probabilities under the reference model, (pairs, 2): chosen, rejected
        self.reference = np.zeros((len(pairs), 2), dtype=np.float32)

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of pairs in each of the rows `ids`, (rows,)."""
        return np.array([len(self.packed[int(row)]) for row in ids], dtype=np.int64)

    def rows(self, ids: np.ndarray) -> PairRows:
        """Read the rows `ids`, int64 (rows,)."""
        shape = (len(ids), self.capacity)
        tokens = np.full(shape, self.eos_id, dtype=np.int64)
        targets = np.full(shape, -100, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int32)
        positions, answers = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        reference = np.zeros(shape, dtype=np.float32)
        for r, row in enumerate(ids):
            start = 0
            for p, number in enumerate(self.packed[int(row)].tolist()):
                pair = self.pairs[number]
                for side, answer in enumerate((pair.chosen, pair.rejected)):
                    sequence = [*pair.prompt, *answer]
                    end = start + len(sequence)
                    first = start + len(pair.prompt) - 1
                    tokens[r, start:end] = sequence
                    targets[r, first : end - 1] = answer
                    answers[r, first : end - 1] = 2 * p + side + 1
                    reference[r, first] = self.reference[number, side]
                    segments[r, start:end] = 2 * p + side + 1
                    positions[r, start:end] = np.arange(len(sequence))
                    start = end
        return PairRows(tokens, targets, segments, positions, answers, reference)

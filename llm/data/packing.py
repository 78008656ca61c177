"""Packing finetuning examples into rows, so that no step is spent on padding."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llm.data.order import permute

OPEN_ROWS = 64  # rows that may still take an example; more pack tighter and take longer


def pack(lengths: np.ndarray, capacity: int, seed: int) -> list[np.ndarray]:
    """Spread examples over rows of `capacity` tokens.

    Examples come in a random order given by the seed and go into the open row that they fill best
    (best fit); of more than OPEN_ROWS open rows the fullest is closed. Rows thus stay random
    mixtures.

    Returns:
        The example numbers of each row, in the order in which they stand there.

    Raises:
        ValueError: an example is longer than a row.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"an example of {lengths.max()} tokens does not fit a row of {capacity}")
    closed: list[list[int]] = []
    rows: list[list[int]] = []
    room = np.zeros(0, dtype=np.int64)
    for i in permute(np.arange(len(lengths)), max(1, len(lengths)), seed).tolist():
        need = int(lengths[i])
        left = np.where(room >= need, room - need, capacity + 1)
        best = int(left.argmin()) if len(left) else -1
        if best < 0 or left[best] > capacity:
            if len(rows) == OPEN_ROWS:
                fullest = int(room.argmin())
                closed.append(rows.pop(fullest))
                room = np.delete(room, fullest)
            rows.append([i])
            room = np.append(room, capacity - need)
        else:
            rows[best].append(i)
            room[best] -= need
    return [np.array(row, dtype=np.int64) for row in closed + rows]


class PackedRows(NamedTuple):
    """Rows of packed examples; every array is (rows, capacity)."""

    tokens: np.ndarray  # int64; padding is the end token
    targets: np.ndarray  # int64; the next token of the response, -100 elsewhere
    segments: np.ndarray  # int32; 1 … k by example, 0 for padding
    positions: np.ndarray  # int64; from 0 in each example


class PackedExamples:
    """Examples in rows of `capacity` tokens, held as flat arrays of token ids."""

    def __init__(
        self, examples: Iterable[tuple[list[int], int]], capacity: int, eos_id: int, seed: int
    ) -> None:
        """`examples`: token ids (prompt, response, end token), and how many of them are prompt."""
        ids, prompts = [], []
        for tokens, prompt in examples:
            ids.append(np.asarray(tokens, dtype=np.int32))
            prompts.append(prompt)
        self.capacity, self.eos_id = capacity, eos_id
        self.flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
        lengths = np.array([len(x) for x in ids], dtype=np.int64)
        self.starts = np.concatenate(([0], np.cumsum(lengths)))
        self.prompts = np.array(prompts, dtype=np.int64)
        self.packed = pack(lengths, capacity, seed)
        self.num_rows, self.num_examples = len(self.packed), len(ids)
        # A target is the token after a position; the first token of an example is nobody's target.
        labels = lengths - np.maximum(self.prompts, 1)
        self._labels = np.array([labels[row].sum() for row in self.packed], dtype=np.int64)

    def head(self, tokens: int) -> PackedExamples:
        """The first rows of at most `tokens` tokens together, at least one row; the examples are
        shared.
        """
        view = copy.copy(self)
        rows = max(1, min(self.num_rows, tokens // self.capacity))
        view.packed, view._labels, view.num_rows = self.packed[:rows], self._labels[:rows], rows
        view.num_examples = sum(map(len, view.packed))
        return view

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Number of targets in each of the rows `ids`."""
        return self._labels[ids]

    def rows(self, ids: np.ndarray) -> PackedRows:
        """The rows `ids` (int64)."""
        shape = (len(ids), self.capacity)
        tokens = np.full(shape, self.eos_id, dtype=np.int64)
        targets = np.full(shape, -100, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int32)
        positions = np.zeros(shape, dtype=np.int64)
        for r, row in enumerate(ids):
            at = 0
            for number, example in enumerate(self.packed[int(row)], start=1):
                piece = self.flat[self.starts[example] : self.starts[example + 1]]
                end = at + len(piece)
                tokens[r, at:end] = piece
                first = max(int(self.prompts[example]), 1)
                targets[r, at + first - 1 : end - 1] = piece[first:]
                segments[r, at:end] = number
                positions[r, at:end] = np.arange(len(piece))
                at = end
        return PackedRows(tokens, targets, segments, positions)

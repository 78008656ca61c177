"""Packing of finetuning examples into rows, so that steps compute little padding."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from llm.data.order import permute

OPEN_ROWS = 64  # rows that can still take an example; more rows pack tighter and slower


def pack(lengths: np.ndarray, capacity: int, seed: int) -> list[np.ndarray]:
    """Spread examples over rows of `capacity` tokens.

    Examples come in a random order that depends on the seed. Each goes into the open row that it
    fills best. Beyond OPEN_ROWS open rows, the fullest is closed. So rows stay random mixtures.

    Returns:
        The numbers of each row's examples, in the order of the row.

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
    targets: np.ndarray  # int64; the next token where it counts, -100 elsewhere
    segments: np.ndarray  # int32; 1 … k by example, 0 for padding
    positions: np.ndarray  # int64; from 0 in each example
    factors: np.ndarray | None  # float32; weight of each target in the loss; None: all weigh one


class LossWeights(NamedTuple):
    """The weights of an example's tokens in the loss.

    prompt: weight of a prompt's tokens (Shi et al. 2024, arXiv:2405.14394; GPT-1's auxiliary loss).
    per_example: every response weighs the same in total, however long it is; otherwise every token.
    prefix: number of a prompt's first tokens that are not predicted, such as virtual tokens.
    """

    prompt: float
    per_example: bool
    prefix: int = 0


class PackedExamples:
    """Examples in rows of `capacity` tokens, held as flat arrays of token ids."""

    def __init__(
        self,
        examples: Iterable[tuple[list[int], int]],
        capacity: int,
        eos_id: int,
        seed: int,
        weights: LossWeights | None = None,
    ) -> None:
        """Pack the examples.

        Args:
            examples: token ids (prompt, response, end token), and the length of the prompt.
            capacity: tokens of a row.
            eos_id: id of the end token, which pads the rows.
            seed: decides the order of packing.
            weights: weights in the loss; None: a response's tokens weigh one, a prompt's nothing.
        """
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
        # A target is the next token, so the first token of an example is never a target.
        labels: np.ndarray = lengths - np.maximum(self.prompts, 1)
        self.response_weight: np.ndarray | None = None  # (examples,)
        if weights is not None:
            self.prompt_weight, self.prefix = weights.prompt, max(weights.prefix, 1)
            self.response_weight = np.ones(len(ids))
            answers = (self.prompts > 0) & weights.per_example  # the rest is plain text
            if answers.any():
                self.response_weight[answers] = labels[answers].mean() / labels[answers]
            predicted = np.maximum(self.prompts - self.prefix, 0)
            labels = labels * self.response_weight + weights.prompt * predicted
        self._labels = np.array([labels[row].sum() for row in self.packed], dtype=labels.dtype)

    def head(self, tokens: int) -> PackedExamples:
        """Return a view of the first rows, at least one, of at most `tokens` tokens together."""
        view = copy.copy(self)
        rows = max(1, min(self.num_rows, tokens // self.capacity))
        view.packed, view._labels, view.num_rows = self.packed[:rows], self._labels[:rows], rows
        view.num_examples = sum(map(len, view.packed))
        return view

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Return the total weight of the targets in each of the rows `ids`, (rows,)."""
        return self._labels[ids]

    def rows(self, ids: np.ndarray) -> PackedRows:
        """Read the rows `ids`, int64 (rows,)."""
        shape = (len(ids), self.capacity)
        tokens = np.full(shape, self.eos_id, dtype=np.int64)
        targets = np.full(shape, -100, dtype=np.int64)
        segments = np.zeros(shape, dtype=np.int32)
        positions = np.zeros(shape, dtype=np.int64)
        factors = None if self.response_weight is None else np.zeros(shape, dtype=np.float32)
        for r, row in enumerate(ids):
            start = 0
            for number, example in enumerate(self.packed[int(row)], 1):
                piece = self.flat[self.starts[example] : self.starts[example + 1]]
                end = start + len(piece)
                tokens[r, start:end] = piece
                first = max(int(self.prompts[example]), 1)
                targets[r, start + first - 1 : end - 1] = piece[first:]
                if factors is not None and self.response_weight is not None:
                    factors[r, start + first - 1 : end - 1] = self.response_weight[example]
                    if self.prompt_weight:
                        prompt = slice(start + self.prefix - 1, start + first - 1)
                        targets[r, prompt] = piece[self.prefix : first]
                        factors[r, prompt] = self.prompt_weight
                segments[r, start:end] = number
                positions[r, start:end] = np.arange(len(piece))
                start = end
        return PackedRows(tokens, targets, segments, positions, factors)

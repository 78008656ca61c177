"""Training sequences, cut from a token stream."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from llm.data.shards import TokenStream
from llm.errors import UserError


class Rows(NamedTuple):
    """Sequences of one length, all int64 and of shape (rows, seq)."""

    tokens: np.ndarray
    targets: np.ndarray  # the next token; -100 means that none is predicted
    segments: np.ndarray | None  # attention stays within equal numbers
    positions: np.ndarray | None


class TokenWindows:
    """Neighbouring windows of a stream; window i predicts tokens i·length + 1 … (i+1)·length.

    For validation, `partial` keeps the last, shorter window, so that every token but the first is
    predicted once.
    """

    def __init__(
        self, stream: TokenStream, length: int, across_documents: bool, partial: bool = False
    ) -> None:
        self.stream, self.length, self.across_documents = stream, length, across_documents
        self.rows_ahead = stream.rows_ahead
        self.predicted = len(stream) - 1
        self.num_rows = -(-self.predicted // length) if partial else self.predicted // length
        if self.num_rows < 1:
            raise UserError(
                f"{len(stream)} tokens are too few for one sequence of {length + 1}: "
                "add text (download.pretrain) or lower sequence_length."
            )

    def rows(self, ids: np.ndarray) -> Rows:
        """Read the windows `ids`, int64 (rows,)."""
        tokens = np.full((len(ids), self.length), self.stream.eos_id, dtype=np.int64)
        targets = np.full((len(ids), self.length), -100, dtype=np.int64)
        for row, i in enumerate(ids):
            start = int(i) * self.length
            length = min(self.length, self.predicted - start)
            window = self.stream.read(start, length + 1).astype(np.int64)
            tokens[row, :length], targets[row, :length] = window[:-1], window[1:]
        if self.across_documents:
            return Rows(tokens, targets, None, None)
        ends = tokens == self.stream.eos_id
        # An end token belongs to the document that it ends.
        segments = np.cumsum(ends, axis=1) - ends
        index = np.arange(self.length)
        first = np.ones_like(ends)
        first[:, 1:] = ends[:, :-1]
        positions = index - np.maximum.accumulate(np.where(first, index, 0), axis=1)
        return Rows(tokens, targets, segments, positions)

    def ahead(self, ids: np.ndarray) -> None:
        """Announce that the windows `ids` will be read soon."""
        for i in ids:
            start = int(i) * self.length
            self.stream.ahead(start, min(self.length, self.predicted - start) + 1)

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of predicted tokens in each of the windows, int64 (rows,)."""
        return np.minimum(self.length, self.predicted - ids * self.length)

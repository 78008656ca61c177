"""Validation loss of each source of a mixture, in the windows and contexts of the whole validation
loss.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from llm.data.val_sources import validation_sources
from llm.data.windows import Rows, TokenWindows

if TYPE_CHECKING:
    from llm.train.engine import Engine


class SourceLabels(NamedTuple):
    """The ends of the documents of a validation stream, and the source of each."""

    ends: np.ndarray  # places of the end tokens, sorted
    sources: np.ndarray  # (documents,) place of each document's source

    @classmethod
    def of(cls, windows: TokenWindows, sources: np.ndarray) -> SourceLabels:
        """Read the end tokens of a stream, a million tokens at a time."""
        stream, ends = windows.stream, [np.zeros(0, dtype=np.int64)]
        for start in range(0, len(stream), 1 << 20):
            ids = stream.read(start, min(1 << 20, len(stream) - start))
            ends.append(np.flatnonzero(ids == stream.eos_id) + start)
        return cls(np.concatenate(ends), sources)


class SourceWindows:
    """The windows that predict a token of one source, with no other token as a target."""

    def __init__(self, windows: TokenWindows, labels: SourceLabels, source: int) -> None:
        self.windows, self.labels, self.source = windows, labels, source
        counts = [self._mine(i).sum() for i in range(windows.num_rows)]
        self.ids = np.flatnonzero(counts)
        self.counts = np.array(counts, dtype=np.int64)[self.ids]
        self.num_rows, self.length, self.rows_ahead = (
            len(self.ids),
            windows.length,
            windows.rows_ahead,
        )
        self.predicted = int(self.counts.sum())

    def rows(self, ids: np.ndarray) -> Rows:
        """The windows `ids` (int64)."""
        rows = self.windows.rows(self.ids[ids])
        targets = rows.targets.copy()
        for row, i in enumerate(self.ids[ids]):
            mine = self._mine(int(i))
            targets[row, : len(mine)][~mine] = -100
            targets[row, len(mine) :] = -100
        return rows._replace(targets=targets)

    def ahead(self, ids: np.ndarray) -> None:
        """Say that the windows `ids` will be read soon."""
        self.windows.ahead(self.ids[ids])

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Predicted tokens in each of the windows."""
        return self.counts[ids]

    def _mine(self, i: int) -> np.ndarray:
        """Return for each token that window i predicts whether it is of this source.

        A document's end token belongs to the document.
        """
        start = i * self.windows.length + 1
        places = np.arange(start, min(start + self.windows.length, self.windows.predicted + 1))
        documents = np.searchsorted(self.labels.ends, places, side="left")
        return (
            self.labels.sources[np.minimum(documents, len(self.labels.sources) - 1)] == self.source
        )


def source_losses(
    engine: Engine, windows: TokenWindows, directory: Path
) -> dict[str, dict[str, float]]:
    """`val_loss_by_source` and `val_bits_per_byte_by_source` of metrics/pretrain.json; nothing
    without a mixture.

    Args:
        windows: of the validation stream.
        directory: data/tokens.
    """
    names, sources, sizes = validation_sources(directory, windows.stream)
    if not names:
        return {}
    labels = SourceLabels.of(windows, sources)
    losses, bits = {}, {}
    for place, name in enumerate(names):
        data = SourceWindows(windows, labels, place)
        if data.num_rows:
            losses[name] = engine.evaluate(data)
            bits[name] = losses[name] * data.predicted / math.log(2) / sizes[place]
    return {"val_loss_by_source": losses, "val_bits_per_byte_by_source": bits}

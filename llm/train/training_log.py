"""The log of a training run: its history, the tracker's curves, the progress line and the heartbeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from llm.runtime import heartbeat
from llm.runtime.progress import Progress
from llm.train.divergence import LossWatch
from llm.train.throughput import Meter

HISTORY_ROWS = 2000  # largest number of rows in a run's history

Row = dict[str, float | int | None]


class Tracker(Protocol):
    """Receives a run's curves."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Log values without raising or blocking for long.

        Args:
            metrics: values by name; the optimizer's step is one of them, `step`.
            step: tokens trained on so far, so that runs with other batches share an axis.
        """


class Untracked:
    """A tracker that drops everything, for all processes but the main one."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Drop them."""


class TrainingLog:
    """Passes each step and each validation on to everything that shows or keeps it."""

    def __init__(
        self, stage: str, steps: int, batch_tokens: int, tracker: Tracker, meter: Meter
    ) -> None:
        self.stage, self.steps, self.batch_tokens = stage, steps, batch_tokens
        self.tracker, self.meter = tracker, meter
        self.history: list[Row] = []  # one row a logged step, in order
        self.every = max(1, -(-steps // HISTORY_ROWS))  # steps between two rows
        self.watch = LossWatch()
        self.progress: Progress
        self.row: Row = {}  # the newest step's
        self.shown: dict[str, str] = {}  # figures on the progress line

    @contextmanager
    def running(self, start: int, quiet: bool) -> Iterator[None]:
        """Show progress within the block; `start` steps are done, and `quiet` shows nothing."""
        tokens = self.batch_tokens
        with Progress(
            self.stage, self.steps * tokens, "tok", start * tokens, scale=True, quiet=quiet
        ) as self.progress:
            yield

    def step(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Log the training step with number `step`, from 1."""
        tokens = step * self.batch_tokens
        self.row = {
            "step": step,
            "tokens": tokens,
            "loss": loss,
            "learning_rate": learning_rate,
            "grad_norm": grad_norm,
            "val_loss": None,
        }
        if step % self.every == 0:
            self._keep()
        trouble = self.watch.update(step, loss)
        figures = self.meter.due()
        if figures:
            self.tracker.log_metrics(figures, step=tokens)
        if shown := heartbeat.current():
            shown.trouble = trouble
            if figures:
                shown.tell(**figures)
        self.shown |= {"loss": f"{loss:.3f}", "lr": f"{learning_rate:.2g}"}
        self.progress.update(self.batch_tokens, **self.shown)

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Exclude the block, a validation, from the measured speed."""
        with self.progress.pause():
            yield

    def validated(self, step: int, loss: float) -> None:
        """Log the validation loss (nats per token) after the step that was logged last."""
        tokens = step * self.batch_tokens
        self.row["val_loss"] = loss
        if step % self.every == 0:  # its row was logged without this loss
            self.tracker.log_metrics({"step": float(step), "val_loss": loss}, step=tokens)
        else:
            self._keep()
        if shown := heartbeat.current():
            shown.validated(tokens, loss)
        self.shown["val"] = f"{loss:.3f}"
        self.progress.update(0, **self.shown)

    def _keep(self) -> None:
        """Add the newest step to the history and to the tracker's curves."""
        self.history.append(self.row)
        metrics = {k: float(v) for k, v in self.row.items() if k != "tokens" and v is not None}
        self.tracker.log_metrics(metrics, step=int(self.row["tokens"] or 0))

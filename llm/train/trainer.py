"""The training loop of pretrain and finetune: all steps of an engine, and what happens between
them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor

from llm.data.batches import Dataset, MicroBatch
from llm.errors import UserError
from llm.model.transformer import Transformer
from llm.parallel import processes
from llm.params import Training
from llm.runtime import env, heartbeat
from llm.runtime.progress import Progress
from llm.train.checkpoint.local import State
from llm.train.determinism import deterministic, difference, verdict
from llm.train.divergence import LossWatch
from llm.train.engine import Engine
from llm.train.schedule import learning_rate
from llm.train.signals import StopRequest

HISTORY_ROWS = 2000  # at most, of a run's history
STATE_SECONDS = 30.0  # between checkpoints


class Tracker(Protocol):
    """Where curves go while training runs."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Never raises and never blocks for long. `step`: tokens trained on so far, so that runs of
        other batches and lengths lie over one another; the optimizer's steps are a metric,
        `step`."""


class Untracked:
    """The tracker of every process but the first, which logs the same."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Drop them."""


@dataclass(frozen=True)
class Result:
    """What training came to. `history` has a row a logged step."""

    history: list[dict[str, float | int | None]]
    val_loss: float
    train_loss: float
    steps: int
    tokens: int
    flops: float
    timing: dict[str, Any]


class Trainer:
    """Trains a model in place; `run` continues the state that it finds."""

    def __init__(
        self,
        model: Transformer,
        train_set: Dataset,
        val_set: Dataset,
        quick_val_set: Dataset,
        settings: Training,
        steps: int,
        seed: int,
        state: State,
        tracker: Tracker,
    ) -> None:
        """`quick_val_set` is scored every `eval_every` steps, `val_set` once at the end.

        Raises:
            UserError: `LLM_STATE_SECONDS` is no number of seconds; or what `Engine` raises.
        """
        self.engine = Engine(
            model,
            train_set,
            settings,
            steps,
            seed,
            state.stage,
            cache=state.directory.parents[1] / "compiled",
        )
        self.val_set, self.quick_val_set = val_set, quick_val_set
        self.settings, self.steps, self.state, self.tracker = settings, steps, state, tracker
        self.stop = StopRequest()
        self.stopping = self.saving = False  # at the end of this step, as all processes know
        self.save_every = env.state_seconds(STATE_SECONDS)
        self.saved = time.monotonic()
        self.coming: Iterator[MicroBatch] = iter(())
        self.history: list[dict[str, float | int | None]] = []
        self.watch = LossWatch()
        self.places = [self.engine.place]

    def run(self) -> Result:
        """Train to the last step, or raise where it cannot go on.

        Raises:
            UserError: a loss or gradient that is not finite (before the update; names step and
                rows), or rows that cannot be read; the state is kept.
            SystemExit: after SIGTERM or SIGINT; the state is kept.
        """
        start = self._resume()
        self._announce(start)
        if start < self.steps:
            with self.stop, deterministic(self.settings.deterministic, self.engine.compiled):
                self._train(start)
        last = self.history[-1]
        assert last["val_loss"] is not None
        recent = [float(row["loss"] or 0.0) for row in self.history[-50:]]
        return Result(
            history=self.history,
            val_loss=float(last["val_loss"]),
            train_loss=float(np.mean(recent)),
            steps=self.steps,
            tokens=self.steps * self.settings.batch_tokens,
            flops=self.engine.flops,
            timing=self._timing(),
        )

    def _train(self, start: int) -> None:
        """All steps from `start` on, and what happens between them."""
        s = self.settings
        every = max(1, -(-self.steps // HISTORY_ROWS))
        several = self.engine.world_size > 1
        self.engine.open_exchange()
        tokens = self.steps * s.batch_tokens, start * s.batch_tokens
        self.saved = time.monotonic()
        val: float | None = None
        with (
            closing(self.engine.batches(start)) as self.coming,
            Progress(
                self.state.stage,
                tokens[0],
                "tok",
                tokens[1],
                scale=True,
                quiet=self.engine.rank > 0,
            ) as progress,
        ):
            for step in range(start, self.steps):
                with self.engine.meter.step():
                    loss, norm, rate = self._step(step)
                done = step + 1
                row: dict[str, float | int | None] = {
                    "step": done,
                    "tokens": done * s.batch_tokens,
                    "loss": loss,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "val_loss": None,
                }
                if done % s.eval_every == 0 or done == self.steps:
                    with progress.pause():
                        rows = self.val_set if done == self.steps else self.quick_val_set
                        row["val_loss"] = val = self.engine.evaluate(rows)
                if done % every == 0 or row["val_loss"] is not None:
                    self.history.append(row)
                    self._track(row)
                trouble = self.watch.update(done, loss)
                shown_as = heartbeat.current()
                if shown_as:
                    shown_as.trouble = trouble
                    if row["val_loss"] is not None:
                        shown_as.validated(done * s.batch_tokens, row["val_loss"])
                if figures := self.engine.meter.due():
                    self.tracker.log_metrics(figures, step=done * s.batch_tokens)
                    if shown_as:
                        shown_as.tell(**figures)
                shown = {"loss": f"{loss:.3f}", "lr": f"{rate:.2g}"} | (
                    {"val": f"{val:.3f}"} if val else {}
                )
                progress.update(s.batch_tokens, **shown)
                if done == self.steps:
                    break
                if self.stopping if several else self.stop.signal is not None:
                    self._save(done, wait=True)
                    self._end(
                        SystemExit(
                            f"{self.state.stage}: stopped after step {done}; `dvc repro` continues from there"
                        )
                    )
                if self.saving if several else self._due():
                    self._save(done)
                    self.saved = time.monotonic()
            self._save(self.steps, wait=True)
            # Asked for in the last step or its validation: the state is whole, what comes next is
            # left to the rerun.
            if processes.sums([float(self.stop.signal is not None)], self.engine.device)[0]:
                self._end(
                    SystemExit(
                        f"{self.state.stage}: stopped after step {done}; `dvc repro` continues from there"
                    )
                )

    def _step(self, step: int) -> tuple[float, float, float]:
        """One update on the global batch; returns loss (nats per label), gradient norm before
        clipping, and rate.
        """
        s = self.settings
        loss, batch, unread = self.engine.backward(step, self.coming)
        wants_stop = self.stop.signal is not None
        due = self.engine.rank == 0 and self._due()
        flags = [float(wants_stop), float(due), float(unread is not None)]
        summed, stopping, saving, lacking = processes.sums([loss, *flags], self.engine.device)
        self.stopping, self.saving = stopping > 0, saving > 0
        if lacking:
            if step > 0:
                self._save(step, wait=True)
            self._end(UserError(next(text for text in processes.everyone(unread) if text)))
        mean = summed / batch.labels
        norm = self.engine.clip(s.grad_clip)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            if step > 0:
                self._save(step, wait=True)
            rows = ", ".join(map(str, batch.ids[:16])) + (" …" if len(batch.ids) > 16 else "")
            self._end(
                UserError(
                    f"{self.state.stage}: the {'loss' if not math.isfinite(mean) else 'gradient'} is not finite at "
                    f"step {step + 1} (rows {rows}). Nothing was updated. Lower {self.state.stage}.learning_rate, or "
                    f"set {self.state.stage}.precision=fp32 to see whether rounding is the cause."
                )
            )
        rate = learning_rate(
            step,
            self.steps,
            s.learning_rate,
            s.schedule,
            s.warmup_fraction,
            s.decay_fraction,
            s.min_lr_fraction,
        )
        self.engine.optimizers.step(rate)
        return mean, norm, rate

    def _end(self, error: UserError | SystemExit) -> NoReturn:
        """Raise what every process found at the same step; of several, the first one says it."""
        if self.engine.world_size == 1:
            raise error
        processes.end_together(f"\nerror: {error}" if isinstance(error, UserError) else str(error))

    # -- state

    def _due(self) -> bool:
        return time.monotonic() - self.saved >= self.save_every

    def _save(self, step: int, wait: bool = False) -> None:
        """Write a state: the first process, since it is the same in each, or every process its
        shards.

        With `wait`, all wait for it.
        """
        if self.engine.rank == 0 or self.engine.sharded:
            with self.engine.meter.waiting("checkpoint"):
                tensors = {f"model.{k}": v for k, v in self.engine.trainable().items()}
                tensors |= {
                    f"optimizer.{k}": v for k, v in self.engine.optimizers.tensors().items()
                }
                # A copy of the history: it is written while training goes on, and must not hold
                # what comes then.
                meta = {
                    "step": step,
                    "micro_batch": self.engine.micro,
                    "history": list(self.history),
                    "places": self.places,
                }
                self.state.save(step, tensors, meta, wait)
            self.engine.meter.checkpoints += 1
        if wait:
            processes.wait()

    def _resume(self) -> int:
        """Load the newest state; return the step to go on with.

        Raises:
            UserError: the processes found states of different steps.
        """
        loaded = self.state.load(self._empty if self.engine.sharded else None)
        step = int(loaded[1]["step"]) if loaded else 0
        processes.refuse_disagreement({"the newest state's step": step}, self.state.stage)
        if loaded is None:
            return 0
        tensors, meta = loaded
        for name, parameter in self.engine.trainable().items():
            parameter.copy_(tensors[f"model.{name}"])
        prefix = "optimizer."
        self.engine.optimizers.load(
            {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
        )
        self.history = meta["history"]
        here, before = self.places[0], meta["places"]
        if here == before[-1]:  # another device may lack the memory for it
            self.engine.micro = meta["micro_batch"]
        self.places = before if before[-1] == here or step == self.steps else [*before, here]
        return step

    def _empty(self, name: str, shape: torch.Size) -> Tensor:
        """Where a tensor of a state is read to: shards like those of the parameter that it belongs
        to.
        """
        kind, _, rest = name.partition(".")
        parameter = self.engine.trainable()[rest if kind == "model" else rest.rpartition(".")[0]]
        return torch.zeros_like(parameter) if shape == parameter.shape else torch.zeros(shape)

    # -- what a person sees

    def _announce(self, start: int) -> None:
        if self.engine.rank == 0:
            for line in self._plan(start):
                print(line, flush=True)

    def _plan(self, start: int) -> Iterator[str]:
        stage = self.state.stage
        for line in self.engine.describe():
            yield f"{stage}: {line}"
        if start:
            yield f"{stage}: continues after step {start:,} of {self.steps:,}"
        if len(self.places) > 1:
            changed = difference(self.places[-2], self.places[-1])
            yield f"{stage}: continues at another place ({changed}): its bytes may differ from those of one run"

    def _track(self, row: dict[str, float | int | None]) -> None:
        metrics = {k: float(v) for k, v in row.items() if k != "tokens" and v is not None}
        self.tracker.log_metrics(metrics, step=int(row["tokens"] or 0))

    def _timing(self) -> dict[str, Any]:
        identical, why = verdict(self.places)
        meter = self.engine.meter.summary()
        return {
            **self.engine.conditions(),
            "deterministic": identical,
            "identical_bytes": why,
            **meter,
        }

"""The training loop of `pretrain` and `finetune`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from llm.data.batches import Dataset, MicroBatch
from llm.errors import UserError
from llm.model.transformer import Transformer
from llm.parallel import processes
from llm.params import Training
from llm.runtime import env
from llm.train.checkpoint.local import State
from llm.train.determinism import deterministic, difference, verdict
from llm.train.engine import Engine
from llm.train.schedule import learning_rate
from llm.train.signals import StopRequest
from llm.train.training_log import Tracker, TrainingLog

STATE_SECONDS = 30.0  # between checkpoints


@dataclass(frozen=True)
class Result:
    """The outcome of training; `history` has one row for each logged step."""

    history: list[dict[str, float | int | None]]
    val_loss: float
    train_loss: float
    steps: int
    tokens: int
    flops: float
    timing: dict[str, Any]


class Trainer:
    """Trains a model in place; `run` resumes from the newest state."""

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
        self.settings, self.steps, self.state = settings, steps, state
        self.log = TrainingLog(
            state.stage, steps, settings.batch_tokens, tracker, self.engine.meter
        )
        self.stop = StopRequest()
        self.save_every = env.state_seconds(STATE_SECONDS)
        self.saved = time.monotonic()
        self.environments = [self.engine.environment]  # those that the run's steps were taken in

    def run(self) -> Result:
        """Train to the last step.

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
        history = self.log.history
        val_loss = history[-1]["val_loss"]
        assert val_loss is not None
        return Result(
            history=history,
            val_loss=float(val_loss),
            train_loss=float(np.mean([float(row["loss"] or 0.0) for row in history[-50:]])),
            steps=self.steps,
            tokens=self.steps * self.settings.batch_tokens,
            flops=self.engine.flops,
            timing=self._timing(),
        )

    def _train(self, start: int) -> None:
        """Take all steps from `start` on; validate, save and stop between them."""
        self.engine.open_exchange()
        self.saved = time.monotonic()
        log = self.log
        with (
            closing(self.engine.batches(start)) as batches,
            log.running(start, quiet=self.engine.rank > 0),
        ):
            for step in range(start, self.steps):
                with self.engine.meter.step():
                    loss, grad_norm, rate = self.step(step, batches)
                done, last = step + 1, step + 1 == self.steps
                log.step(done, loss, grad_norm, rate)
                if last or done % self.settings.eval_every == 0:
                    with log.validating():
                        val_loss = self.engine.evaluate(
                            self.val_set if last else self.quick_val_set
                        )
                    log.validated(done, val_loss)
                if last:
                    self._save(done, wait=True)
                stop, save = self._agree()
                if (stop or save) and not last:
                    self._save(done, wait=stop)
                if stop:
                    self._exit(
                        SystemExit(
                            f"{self.state.stage}: stopped after step {done}; `dvc repro` continues from there"
                        )
                    )

    def step(self, step: int, batches: Iterator[MicroBatch]) -> tuple[float, float, float]:
        """Update the model on the global batch of `step`, from 0.

        Args:
            batches: this process's micro-batches, in order; those of this step are taken.

        Returns:
            Loss (nats per label), gradient norm before clipping, and learning rate.
        """
        s, stage = self.settings, self.state.stage
        loss, batch, unread = self.engine.backward(step, batches)
        total, failed = processes.all_reduce_sum(
            [loss, float(unread is not None)], self.engine.device
        )
        if failed:
            self._save_before(step)
            self._exit(UserError(next(text for text in processes.all_gather(unread) if text)))
        mean = total / batch.labels
        norm = self.engine.clip(s.grad_clip)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            self._save_before(step)
            rows = ", ".join(map(str, batch.ids[:16])) + (" …" if len(batch.ids) > 16 else "")
            self._exit(
                UserError(
                    f"{stage}: the {'loss' if not math.isfinite(mean) else 'gradient'} is not finite at "
                    f"step {step + 1} (rows {rows}). Nothing was updated. Lower {stage}.learning_rate, or "
                    f"set {stage}.precision=fp32 to see whether rounding is the cause."
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

    def _agree(self) -> tuple[bool, bool]:
        """Return whether to stop and whether to save, as all processes then know."""
        due = self.engine.rank == 0 and time.monotonic() - self.saved >= self.save_every
        flags = [float(self.stop.signal is not None), float(due)]
        stop, save = processes.all_reduce_sum(flags, self.engine.device)
        return stop > 0, save > 0

    def _exit(self, error: UserError | SystemExit) -> NoReturn:
        """Raise an error that every process found at the same step; only the main one prints it."""
        if self.engine.world_size == 1:
            raise error
        processes.exit_all(f"\nerror: {error}" if isinstance(error, UserError) else str(error))

    # -- state

    def _save_before(self, step: int) -> None:
        """Save the state before `step`, which fails; a run without a step has nothing to save."""
        if step > 0:
            self._save(step, wait=True)

    def _save(self, step: int, wait: bool = False) -> None:
        """Write a state after `step` steps; with `wait`, return once it is on disk.

        The main process writes a replicated model's state, every process its shards of a sharded one.
        """
        if self.engine.rank == 0 or self.engine.sharded:
            with self.engine.meter.waiting("checkpoint"):
                tensors = {f"model.{k}": v for k, v in self.engine.trainable().items()}
                tensors |= {
                    f"optimizer.{k}": v for k, v in self.engine.optimizers.tensors().items()
                }
                # The history is copied, since it grows while a thread writes the state.
                meta = {
                    "step": step,
                    "micro_batch": self.engine.micro,
                    "history": [dict(row) for row in self.log.history],
                    "places": self.environments,
                }
                self.state.save(step, tensors, meta, wait)
            self.engine.meter.checkpoints += 1
        if wait:
            processes.barrier()
        self.saved = time.monotonic()

    def _resume(self) -> int:
        """Load the newest state and return the number of steps that it has taken.

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
        self.log.history = meta["history"]
        current, before = self.environments[0], meta["places"]
        if current == before[-1]:  # another device may lack the memory for it
            self.engine.micro = meta["micro_batch"]
        finished = step == self.steps
        self.environments = before if before[-1] == current or finished else [*before, current]
        return step

    def _empty(self, name: str, shape: torch.Size) -> Tensor:
        """Return the tensor that a state's tensor is read into, sharded like its parameter."""
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
            yield f"{stage}: resumes after step {start:,} of {self.steps:,}"
        if len(self.environments) > 1:
            changed = difference(self.environments[-2], self.environments[-1])
            yield (
                f"{stage}: resumed on different hardware ({changed}): "
                "results may not be bit-identical to an uninterrupted run"
            )

    def _timing(self) -> dict[str, Any]:
        identical, why = verdict(self.environments)
        meter = self.engine.meter.summary()
        return {
            **self.engine.conditions(),
            "deterministic": identical,
            "identical_bytes": why,
            **meter,
        }

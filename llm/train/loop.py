"""The training loop of pretrain and finetune.

What a step computes depends on (weights, optimizer state, seed, step) alone: the data order is a stateless permutation,
dropout is seeded by step and micro-batch, and the loss is normalised over the global batch, however it is split.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm.data.order import batch_ids
from llm.errors import UserError
from llm.model.transformer import Transformer
from llm.params import Training
from llm.progress import Progress
from llm.train import dry, hardware
from llm.train.optimizer import Optimizers
from llm.train.schedule import learning_rate
from llm.train.signals import StopRequest, die_with_parent
from llm.train.state import State

HISTORY_ROWS = 2000  # at most, of a run's history
STATE_SECONDS = 30.0  # between checkpoints


class Dataset(Protocol):
    """Rows of one length, addressed by number."""

    num_rows: int

    def rows(self, ids: np.ndarray) -> Any:
        """tokens, targets, segments, positions: each (len(ids), length), the last two may be None."""

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Predicted tokens of each row."""


class Tracker(Protocol):
    """Where curves go while training runs."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Never raises and never blocks for long."""


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
        """`quick_val_set` is scored every `eval_every` steps, `val_set` once at the end."""
        self.device = hardware.device()
        self.model = model.to(self.device)
        self.train_set, self.val_set, self.quick_val_set = train_set, val_set, quick_val_set
        self.settings, self.steps, self.seed = settings, steps, seed
        self.state, self.tracker = state, tracker
        self.length = settings.sequence_length
        self.batch_size = settings.batch_tokens // self.length
        self.flops = model.config.flops_per_token(self.length) * settings.batch_tokens * steps
        model.compute_dtype = hardware.precision(settings.precision, self.device)
        self.compiled = hardware.compiles(settings.compile, self.device, self.flops)
        if self.compiled:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((state.directory.parents[1] / "compiled").absolute()))
            model.compile_parts()
        self.micro = dry.micro_batch(state.stage, model, train_set, self.length, self.batch_size)
        self.optimizers = Optimizers(
            model, settings.optimizer, settings.learning_rate, settings.weight_decay, settings.betas
        )
        self.history: list[dict[str, float | int | None]] = []
        self.step_seconds: list[float] = []

    def run(self) -> Result:
        """Train to the last step, or raise where it cannot go on.

        Raises:
            UserError: a loss or gradient that is not finite (before the update; names step and rows).
            SystemExit: after SIGTERM or SIGINT; the state is kept.
        """
        die_with_parent()
        start = self._resume()
        self._announce(start)
        every = max(1, -(-self.steps // HISTORY_ROWS))
        saved = time.monotonic()
        val: float | None = None
        with (
            StopRequest() as stop,
            Progress(
                self.state.stage,
                self.steps * self.settings.batch_tokens,
                "tok",
                start * self.settings.batch_tokens,
                True,
            ) as progress,
        ):
            for step in range(start, self.steps):
                began = time.perf_counter()
                loss, norm, rate = self._step(step)
                self.step_seconds.append(time.perf_counter() - began)
                done = step + 1
                row: dict[str, float | int | None] = {
                    "step": done,
                    "tokens": done * self.settings.batch_tokens,
                    "loss": loss,
                    "learning_rate": rate,
                    "grad_norm": norm,
                    "val_loss": None,
                }
                if done % self.settings.eval_every == 0 and done < self.steps:
                    row["val_loss"] = val = self.evaluate(self.quick_val_set)
                if done == self.steps:
                    row["val_loss"] = val = self.evaluate(self.val_set)
                if done % every == 0 or row["val_loss"] is not None:
                    self.history.append(row)
                    self._track(row)
                figures = {"loss": f"{loss:.3f}", "lr": f"{rate:.2g}"} | ({"val": f"{val:.3f}"} if val else {})
                progress.update(self.settings.batch_tokens, **figures)
                if done == self.steps:
                    break
                if stop.signal is not None:
                    self._save(done, wait=True)
                    sys.exit(f"{self.state.stage}: stopped after step {done}; `dvc repro` continues from there")
                if time.monotonic() - saved >= float(os.environ.get("LLM_STATE_SECONDS", STATE_SECONDS)):
                    self._save(done)
                    saved = time.monotonic()
            if start < self.steps:
                self._save(self.steps, wait=True)
        last = self.history[-1]
        assert last["val_loss"] is not None
        recent = [float(row["loss"] or 0.0) for row in self.history[-50:]]
        return Result(
            history=self.history,
            val_loss=float(last["val_loss"]),
            train_loss=float(np.mean(recent)),
            steps=self.steps,
            tokens=self.steps * self.settings.batch_tokens,
            flops=self.flops,
            timing=self._timing(),
        )

    @torch.no_grad()
    def evaluate(self, data: Dataset) -> float:
        """Mean loss (nats per predicted token) over all rows in order, with fixed shapes."""
        self.model.eval()
        total, count = 0.0, 0
        for first in range(0, data.num_rows, self.micro):
            ids = np.arange(first, min(first + self.micro, data.num_rows))
            count += int(data.label_counts(ids).sum())
            total += float(self.model.loss(**self._tensors(data, ids)))
        self.model.train()
        return total / count

    def _step(self, step: int) -> tuple[float, float, float]:
        """One update on the global batch; returns loss (nats per label), gradient norm before clipping, and rate."""
        s = self.settings
        ids = batch_ids(self.seed, step, self.batch_size, self.train_set.num_rows)
        labels = int(self.train_set.label_counts(ids).sum())
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, first in enumerate(range(0, len(ids), self.micro)):
            torch.manual_seed((self.seed * 1_000_003 + step) * 1_000_003 + number)  # dropout
            loss = self.model.loss(**self._tensors(self.train_set, ids[first : first + self.micro]))
            (loss / labels).backward()
            total += loss.detach()
        mean = float(total) / labels
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, s.grad_clip))
        if not (math.isfinite(mean) and math.isfinite(norm)):
            if step > 0:
                self._save(step, wait=True)
            shown = ", ".join(map(str, ids[:16])) + (" …" if len(ids) > 16 else "")
            raise UserError(
                f"{self.state.stage}: the {'loss' if not math.isfinite(mean) else 'gradient'} is not finite at step "
                f"{step + 1} (rows {shown}). Nothing was updated. Lower {self.state.stage}.learning_rate, or set "
                f"{self.state.stage}.precision=fp32 to see whether rounding is the cause."
            )
        rate = learning_rate(
            step, self.steps, s.learning_rate, s.schedule, s.warmup_fraction, s.decay_fraction, s.min_lr_fraction
        )
        self.optimizers.step(rate)
        return mean, norm, rate

    def _tensors(self, data: Dataset, ids: np.ndarray) -> dict[str, Tensor]:
        """Rows on the device, filled up to the micro-batch with rows that have no label."""
        tokens, targets, segments, positions = data.rows(ids)
        missing = self.micro - len(ids)
        if missing:
            tokens, targets = (
                np.concatenate((array, np.full((missing, self.length), value)))
                for array, value in ((tokens, 0), (targets, -100))
            )
            if segments is not None:
                segments, positions = (
                    np.concatenate((array, np.zeros((missing, self.length), dtype=array.dtype)))
                    for array in (segments, positions)
                )
        arrays = {"input_ids": tokens, "targets": targets, "segments": segments, "positions": positions}
        return {
            key: torch.from_numpy(np.ascontiguousarray(value)).to(self.device, non_blocking=True)
            for key, value in arrays.items()
            if value is not None
        }

    # -- state --------------------------------------------------------------------------------------------------------

    def _trainable(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.model.named_parameters() if p.requires_grad}

    def _save(self, step: int, wait: bool = False) -> None:
        tensors = {f"model.{k}": v for k, v in self._trainable().items()}
        tensors |= {f"optimizer.{k}": v for k, v in self.optimizers.tensors().items()}
        self.state.save(step, tensors, {"step": step, "micro_batch": self.micro, "history": self.history}, wait)

    def _resume(self) -> int:
        """Load the newest state; return the step to go on with."""
        loaded = self.state.load()
        if loaded is None:
            return 0
        tensors, meta = loaded
        for name, parameter in self._trainable().items():
            parameter.copy_(tensors[f"model.{name}"])
        prefix = "optimizer."
        self.optimizers.load({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        self.history, self.micro = meta["history"], meta["micro_batch"]
        return int(meta["step"])

    # -- what a person sees -------------------------------------------------------------------------------------------

    def _announce(self, start: int) -> None:
        for line in self._plan(start):
            print(line, flush=True)

    def _plan(self, start: int) -> Iterator[str]:
        config, s = self.model.config, self.settings
        trainable = sum(p.numel() for p in self._trainable().values())
        epochs = self.steps * self.batch_size / self.train_set.num_rows
        yield (
            f"{self.state.stage}: {config.parameters():,} parameters"
            + (f", {trainable:,} of them trained" if trainable < config.parameters() else "")
            + f" · {self.steps:,} steps of {s.batch_tokens:,} tokens ({epochs:.2f} epochs) · {self.flops:.2e} FLOPs"
        )
        kind = str(self.model.compute_dtype).removeprefix("torch.")
        yield (
            f"{self.state.stage}: {hardware.name(self.device)} · {kind} · "
            f"{'compiled (the first step takes longer)' if self.compiled else 'not compiled'} · "
            f"micro-batch {self.micro} × {self.length} tokens"
        )
        if start:
            yield f"{self.state.stage}: continues after step {start:,} of {self.steps:,}"

    def _track(self, row: dict[str, float | int | None]) -> None:
        step = int(row["step"] or 0)
        self.tracker.log_metrics({k: float(v) for k, v in row.items() if k != "step" and v is not None}, step=step)

    def _timing(self) -> dict[str, Any]:
        """Rates from the median step of this process, so that compilation does not count."""
        timing: dict[str, Any] = {
            "device": hardware.name(self.device),
            "dtype": str(self.model.compute_dtype).removeprefix("torch."),
            "compiled": self.compiled,
            "micro_batch": self.micro,
            "steps_measured": len(self.step_seconds),
        }
        if self.step_seconds:
            seconds = float(np.median(self.step_seconds))
            achieved = self.flops / self.steps / seconds
            rate = hardware.matmul_flops_per_second(self.device, self.model.compute_dtype)
            timing |= {
                "tokens_per_second": self.settings.batch_tokens / seconds,
                "first_step_seconds": self.step_seconds[0],
                "mfu": achieved / rate,
                "matmul_flops_per_second": rate,
            }
        if self.device.type == "cuda":
            timing["peak_device_memory_bytes"] = torch.cuda.max_memory_allocated(self.device)
        return timing

"""The training loop of pretrain and finetune.

What a step computes depends on (weights, optimizer state, seed, step) alone: the data order is a stateless permutation,
dropout is seeded by step and micro-batch, and the loss is normalised over the global batch, however it is split into
micro-batches and over processes.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from llm import beacon
from llm.errors import UserError
from llm.model.dtensor import unshard, whole
from llm.model.quantized import QuantizedLinear
from llm.model.transformer import Transformer
from llm.params import Training
from llm.progress import Progress
from llm.train import distributed, dry, hardware, sharding
from llm.train.determinism import deterministic, difference, place, verdict
from llm.train.divergence import LossWatch
from llm.train.loader import Dataset, MicroBatch, announced, host_tensors, micro_batches, one_ahead
from llm.train.meter import Meter
from llm.train.optimizer import Optimizers
from llm.train.schedule import learning_rate
from llm.train.signals import StopRequest
from llm.train.state import State

HISTORY_ROWS = 2000  # at most, of a run's history
STATE_SECONDS = 30.0  # between checkpoints


class Tracker(Protocol):
    """Where curves go while training runs."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Never raises and never blocks for long."""


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
        """`quick_val_set` is scored every `eval_every` steps, `val_set` once at the end."""
        self.device = hardware.device()
        self.model, self.sharded = model, model.fill is not None
        if not self.sharded:
            model.to(self.device)
        self.train_set, self.val_set, self.quick_val_set = train_set, val_set, quick_val_set
        self.settings, self.steps, self.seed = settings, steps, seed
        self.state, self.tracker = state, tracker
        self.length = settings.sequence_length
        self.batch_size = settings.batch_tokens // self.length
        self.flops = model.config.flops_per_token(self.length) * settings.batch_tokens * steps
        model.compute_dtype = hardware.precision(settings.precision, self.device)
        model.grad_checkpointing = settings.grad_checkpointing
        # Unpacking 4-bit weights is the library's own kernel, at which the compiler would stop in every layer.
        quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
        self.compiled = not quantized and hardware.compiles(settings.compile, self.device, self.flops)
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        rows = state.stage, model, train_set, self.length, self.batch_size
        if self.sharded:  # before layers are compiled, of which a copy would be the original's
            fits = dry.sharded_micro_batch(*rows, self.compiled)
        if self.compiled:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str((state.directory.parents[1] / "compiled").absolute()))
            model.compile_parts()
        if self.world_size > 1:
            chosen = {
                "sharding": "fsdp" if self.sharded else "ddp",
                "type": model.compute_dtype,
                "compiled": self.compiled,
            }
            distributed.refuse_disagreement(chosen, state.stage)
        self.parallel: Any = None  # of several processes: the loss as DistributedDataParallel, or sharded
        if self.sharded:
            self.parallel = sharding.shard(model, self.device, model.compute_dtype, self.compiled)
        else:
            fits = dry.micro_batch(*rows)
        self.micro = distributed.balanced(min(distributed.everyone(fits)), self.batch_size, self.world_size)
        self.optimizers = Optimizers(
            model, settings.optimizer, settings.learning_rate, settings.weight_decay, settings.betas
        )
        self.stop = StopRequest()
        self.stopping = self.saving = False  # at the end of this step, as all processes know
        self.saved = time.monotonic()
        self.coming: Iterator[MicroBatch] = iter(())
        self.history: list[dict[str, float | int | None]] = []
        self.watch = LossWatch()
        self.places = [place(self.device, model.compute_dtype, self.compiled, settings.deterministic, self.sharded)]
        self.meter = Meter(self.device, model.compute_dtype, self.flops / steps, settings.batch_tokens)

    def run(self) -> Result:
        """Train to the last step, or raise where it cannot go on.

        Raises:
            UserError: a loss or gradient that is not finite (before the update; names step and rows), or rows that
                cannot be read; the state is kept.
            SystemExit: after SIGTERM or SIGINT; the state is kept.
        """
        start = self._resume()
        self._announce(start)
        if start < self.steps:
            with self.stop, deterministic(self.settings.deterministic, self.compiled):
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
            flops=self.flops,
            timing=self._timing(),
        )

    def _train(self, start: int) -> None:
        """All steps from `start` on, and what happens between them."""
        s = self.settings
        every = max(1, -(-self.steps // HISTORY_ROWS))
        if self.world_size > 1 and not self.sharded:
            self._open_exchange()
        tokens = self.steps * s.batch_tokens, start * s.batch_tokens
        self.saved = time.monotonic()
        val: float | None = None
        with (
            closing(self._batches(start)) as self.coming,
            Progress(self.state.stage, tokens[0], "tok", tokens[1], scale=True, quiet=self.rank > 0) as progress,
        ):
            for step in range(start, self.steps):
                with self.meter.step():
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
                        row["val_loss"] = val = self.evaluate(rows)
                if done % every == 0 or row["val_loss"] is not None:
                    self.history.append(row)
                    self._track(row)
                trouble = self.watch.update(done, loss)
                shown_as = beacon.current()
                if shown_as:
                    shown_as.trouble = trouble
                    if row["val_loss"] is not None:
                        shown_as.tell(val_step=done, val_loss=row["val_loss"])
                        shown_as.write()  # at once: a tuner may want to stop the run for it
                if figures := self.meter.due():
                    self.tracker.log_metrics(figures, step=done)
                    if shown_as:
                        shown_as.tell(**figures)
                shown = {"loss": f"{loss:.3f}", "lr": f"{rate:.2g}"} | ({"val": f"{val:.3f}"} if val else {})
                progress.update(s.batch_tokens, **shown)
                if done == self.steps:
                    break
                if self.stopping if self.world_size > 1 else self.stop.signal is not None:
                    self._save(done, wait=True)
                    self._end(
                        SystemExit(f"{self.state.stage}: stopped after step {done}; `dvc repro` continues from there")
                    )
                if self.saving if self.world_size > 1 else self._due():
                    self._save(done)
                    self.saved = time.monotonic()
            self._save(self.steps, wait=True)

    def _batches(self, start: int) -> Generator[MicroBatch]:
        """What `_step` takes from `coming`: this process's micro-batches of all steps from `start` on."""
        mine = distributed.dealt(self.batch_size, self.micro, self.rank, self.world_size)
        steps, pin = range(start, self.steps), self.device.type == "cuda"
        return one_ahead(micro_batches(self.train_set, self.seed, steps, self.batch_size, self.micro, mine, pin))

    @torch.no_grad()
    def evaluate(self, data: Dataset) -> float:
        """Mean loss (nats per predicted token) over all rows in order, with fixed shapes; processes share the rows."""
        self.model.eval()
        total, count = 0.0, 0
        # Equally many for each process, since those of a sharded model compute together; the last may be empty.
        mine = distributed.dealt(data.num_rows, self.micro, self.rank, self.world_size)
        every = np.arange(data.num_rows)
        ids = [every[number * self.micro : (number + 1) * self.micro] for number in mine]
        with (
            deterministic(self.settings.deterministic, self.compiled),
            closing(one_ahead(self._host_tensors(data, p) for p in announced(data, iter(ids), lambda p: p))) as coming,
        ):
            for part, tensors in zip(ids, coming, strict=True):
                count += int(data.label_counts(part).sum())
                on_device = self._to_device(tensors)
                total += float(self.parallel(on_device) if self.sharded else self.model.loss(**on_device))
        if self.sharded:
            self.parallel.reshard()
        self.model.train()
        all_total, all_count = distributed.sums([total, float(count)], self.device)
        return all_total / all_count

    def _step(self, step: int) -> tuple[float, float, float]:
        """One update on the global batch; returns loss (nats per label), gradient norm before clipping, and rate."""
        s = self.settings
        rounds = len(distributed.dealt(self.batch_size, self.micro, self.rank, self.world_size))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        unread: str | None = None
        for i in range(rounds):
            try:
                with self.meter.waiting("loader"):
                    part = next(self.coming) if unread is None else self._nothing(step)
            except UserError as error:  # the others learn of it with the sums, and must not wait for them in vain
                unread, part = str(error), self._nothing(step)
            tensors = self._to_device(part.tensors)
            assert part.step == step
            torch.manual_seed((self.seed * 1_000_003 + step) * 1_000_003 + part.number)  # dropout
            last = i == rounds - 1
            # A sharded model has no room for whole gradients: it adds up the processes' after each micro-batch.
            with (
                self.parallel.no_sync()
                if isinstance(self.parallel, DistributedDataParallel) and not last
                else nullcontext()
            ):
                loss = self.parallel(tensors) if self.parallel else self.model.loss(**tensors)
                # Summed over the processes, of which DistributedDataParallel takes the mean, and divided by all labels.
                (loss / (part.labels / self.world_size)).backward()
            total += loss.detach()
        wants_stop = self.stop.signal is not None
        due = self.rank == 0 and self._due()
        flags = [float(wants_stop), float(due), float(unread is not None)]
        summed, stopping, saving, lacking = distributed.sums([float(total), *flags], self.device)
        self.stopping, self.saving = stopping > 0, saving > 0
        if lacking:
            if step > 0:
                self._save(step, wait=True)
            self._end(UserError(next(text for text in distributed.everyone(unread) if text)))
        mean = summed / part.labels
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        total_norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        torch.nn.utils.clip_grads_with_norm_(parameters, s.grad_clip, total_norm)
        norm = float(total_norm)
        if not (math.isfinite(mean) and math.isfinite(norm)):
            if step > 0:
                self._save(step, wait=True)
            rows = ", ".join(map(str, part.ids[:16])) + (" …" if len(part.ids) > 16 else "")
            self._end(
                UserError(
                    f"{self.state.stage}: the {'loss' if not math.isfinite(mean) else 'gradient'} is not finite at "
                    f"step {step + 1} (rows {rows}). Nothing was updated. Lower {self.state.stage}.learning_rate, or "
                    f"set {self.state.stage}.precision=fp32 to see whether rounding is the cause."
                )
            )
        rate = learning_rate(
            step, self.steps, s.learning_rate, s.schedule, s.warmup_fraction, s.decay_fraction, s.min_lr_fraction
        )
        self.optimizers.step(rate)
        return mean, norm, rate

    def gather(self) -> None:
        """Bring the model, of a sharded one all parts, to the first process's host memory, to be written.

        It ends training.
        """
        if self.sharded:
            unshard(self.model, keep=self.rank == 0)
        else:
            self.model.to("cpu")

    def _host_tensors(self, data: Dataset, ids: np.ndarray) -> dict[str, Tensor]:
        return host_tensors(data, ids, self.micro, pin=self.device.type == "cuda")

    def _nothing(self, step: int) -> MicroBatch:
        """What a process computes on that cannot read its rows, to keep the others company."""
        none = np.zeros(0, dtype=np.int64)
        return MicroBatch(step, 0, none, 1, self._host_tensors(self.train_set, none))

    def _to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: value.to(self.device, non_blocking=True) for key, value in tensors.items()}

    def _open_exchange(self) -> None:
        """Wrap the loss, and run it once on rows without a label.

        DistributedDataParallel lays out its buckets anew after the first backward pass, and the layout decides the
        order in which three processes or more add up. Once this is done before the first step, every step of a resumed
        run adds up as in a run that was never stopped.
        """
        self.parallel = distributed.parallel_loss(self.model)
        empty = self._host_tensors(self.train_set, np.zeros(0, dtype=np.int64))
        self.parallel(self._to_device(empty)).backward()
        self.model.zero_grad(set_to_none=True)

    def _end(self, error: UserError | SystemExit) -> NoReturn:
        """Raise what every process found at the same step; of several, the first one says it."""
        if self.world_size == 1:
            raise error
        distributed.end_together(f"\nerror: {error}" if isinstance(error, UserError) else str(error))

    # -- state --------------------------------------------------------------------------------------------------------

    def _trainable(self) -> dict[str, Tensor]:
        return {name: p.data for name, p in self.model.named_parameters() if p.requires_grad}

    def _due(self) -> bool:
        return time.monotonic() - self.saved >= float(os.environ.get("LLM_STATE_SECONDS", STATE_SECONDS))

    def _save(self, step: int, wait: bool = False) -> None:
        """Write a state: the first process, since it is the same in each, or every process its shards.

        With `wait`, all wait for it.
        """
        if self.rank == 0 or self.sharded:
            with self.meter.waiting("checkpoint"):
                tensors = {f"model.{k}": v for k, v in self._trainable().items()}
                tensors |= {f"optimizer.{k}": v for k, v in self.optimizers.tensors().items()}
                # A copy of the history: it is written while training goes on, and must not hold what comes then.
                meta = {"step": step, "micro_batch": self.micro, "history": list(self.history), "places": self.places}
                self.state.save(step, tensors, meta, wait)
            self.meter.checkpoints += 1
        if wait:
            distributed.wait()

    def _resume(self) -> int:
        """Load the newest state; return the step to go on with.

        Raises:
            UserError: the processes found states of different steps.
        """
        loaded = self.state.load(self._empty if self.sharded else None)
        step = int(loaded[1]["step"]) if loaded else 0
        distributed.refuse_disagreement({"the newest state's step": step}, self.state.stage)
        if loaded is None:
            return 0
        tensors, meta = loaded
        for name, parameter in self._trainable().items():
            parameter.copy_(tensors[f"model.{name}"])
        prefix = "optimizer."
        self.optimizers.load({k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)})
        self.history = meta["history"]
        here, before = self.places[0], meta["places"]
        if here["processes"] == before[-1]["processes"]:
            self.micro = meta["micro_batch"]
        self.places = before if before[-1] == here or step == self.steps else [*before, here]
        return step

    def _empty(self, name: str, shape: torch.Size) -> Tensor:
        """Where a tensor of a state is read to: shards like those of the parameter that it belongs to."""
        kind, _, rest = name.partition(".")
        parameter = self._trainable()[rest if kind == "model" else rest.rpartition(".")[0]]
        return torch.zeros_like(parameter) if shape == parameter.shape else torch.zeros(shape)

    # -- what a person sees -------------------------------------------------------------------------------------------

    def _announce(self, start: int) -> None:
        if self.rank == 0:
            for line in self._plan(start):
                print(line, flush=True)

    def _plan(self, start: int) -> Iterator[str]:
        config, s, stage = self.model.config, self.settings, self.state.stage
        trainable = sum(p.numel() for p in self._trainable().values())
        epochs = self.steps * self.batch_size / self.train_set.num_rows
        yield (
            f"{stage}: {config.parameters():,} parameters"
            + (f", {trainable:,} of them trained" if trainable < config.parameters() else "")
            + f" · {self.steps:,} steps of {s.batch_tokens:,} tokens ({epochs:.2f} epochs) · {self.flops:.2e} FLOPs"
        )
        kind = str(self.model.compute_dtype).removeprefix("torch.")
        yield (
            f"{stage}: {hardware.name(self.device)} · {kind} · "
            f"{'compiled (the first step takes longer)' if self.compiled else 'not compiled'} · "
            + (f"{self.world_size} processes{', sharded' if self.sharded else ''} · " if self.world_size > 1 else "")
            + f"micro-batch {self.micro} × {self.length} tokens"
        )
        if start:
            yield f"{stage}: continues after step {start:,} of {self.steps:,}"
        if len(self.places) > 1:
            changed = difference(self.places[-2], self.places[-1])
            yield f"{stage}: continues at another place ({changed}): its bytes may differ from those of one run"

    def _track(self, row: dict[str, float | int | None]) -> None:
        step = int(row["step"] or 0)
        self.tracker.log_metrics({k: float(v) for k, v in row.items() if k != "step" and v is not None}, step=step)

    def _timing(self) -> dict[str, Any]:
        identical, why = verdict(self.places)
        return {
            "device": hardware.name(self.device),
            "dtype": str(self.model.compute_dtype).removeprefix("torch."),
            "compiled": self.compiled,
            "processes": self.world_size,
            "sharded": self.sharded,
            "micro_batch": self.micro,
            "deterministic": identical,
            "identical_bytes": why,
            **self.meter.summary(),
        }

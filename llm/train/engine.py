"""The engine of a training run: gradients of a global batch, and losses, over all processes.

What a step computes depends on (weights, optimizer state, seed, step) alone: the data order is a
stateless permutation, dropout is seeded by step and micro-batch, and the loss is normalised over
the global batch, however it is split into micro-batches and over processes.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from llm.data.batches import Dataset, MicroBatch, announced, host_tensors, micro_batches, one_ahead
from llm.errors import UserError
from llm.model.quantized import QuantizedLinear
from llm.model.sharded_tensor import unshard, whole
from llm.model.transformer import Transformer
from llm.parallel import hardware, processes
from llm.params import Training
from llm.train import fsdp, micro_batch
from llm.train.determinism import deterministic, run_environment
from llm.train.optimizer import Optimizers
from llm.train.throughput import Meter


class Engine:
    """A model on this process's device with its optimizers, and this process's share of each global
    batch.
    """

    def __init__(
        self,
        model: Transformer,
        train_set: Dataset,
        settings: Training,
        steps: int,
        seed: int,
        stage: str,
        cache: Path,
    ) -> None:
        """Put the model on the device, whole or sharded, and choose how it computes there.

        Args:
            stage: for messages.
            cache: directory of compiled code.

        Raises:
            UserError: one sequence does not fit the device's memory, or the processes would not
                compute the same.
        """
        self.device = hardware.device()
        self.model, self.sharded = model, model.fill is not None
        if not self.sharded:
            model.to(self.device)
        self.train_set, self.settings, self.steps, self.seed = train_set, settings, steps, seed
        self.length = settings.sequence_length
        self.batch_size = settings.batch_tokens // self.length
        self.flops = model.config.flops_per_token(self.length) * settings.batch_tokens * steps
        model.compute_dtype = hardware.precision(settings.precision, self.device)
        model.grad_checkpointing = settings.grad_checkpointing
        # Unpacking 4-bit weights is the library's own kernel, at which the compiler would stop in
        # every layer.
        quantized = any(isinstance(module, QuantizedLinear) for module in model.modules())
        self.compiled = not quantized and hardware.compiles(
            settings.compile, self.device, self.flops
        )
        self.rank, self.world_size = processes.rank(), processes.world_size()
        if self.world_size > 1:
            chosen = {
                "sharding": "fsdp" if self.sharded else "ddp",
                "type": model.compute_dtype,
                "compiled": self.compiled,
            }
            processes.refuse_disagreement(chosen, stage)
        rows = stage, model, train_set, self.length, self.batch_size
        if self.sharded:  # before layers are compiled: those of a copy would be the original's
            fits = micro_batch.sharded_micro_batch(*rows, self.compiled)
        if self.compiled:
            os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache.absolute()))
            model.compile_parts()
        self.parallel: Any = (
            None  # of several processes: the loss as DistributedDataParallel, or sharded
        )
        if self.sharded:
            self.parallel = fsdp.shard(model, self.device, model.compute_dtype, self.compiled)
        else:
            fits = micro_batch.micro_batch(*rows)
        self.micro = processes.balanced_micro_batch(
            min(processes.all_gather(fits)), self.batch_size, self.world_size
        )
        self.optimizers = Optimizers(
            model,
            settings.optimizer,
            settings.learning_rate,
            settings.weight_decay,
            settings.betas,
            settings.embedding_lr_multiplier,
        )
        self.environment = run_environment(
            self.device, model.compute_dtype, self.compiled, settings.deterministic, self.sharded
        )
        self.meter = Meter(
            self.device, model.compute_dtype, self.flops / steps, settings.batch_tokens
        )

    def trainable(self) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {name: p.data for name, p in self.model.named_parameters() if p.requires_grad}

    def batches(self, start: int) -> Generator[MicroBatch]:
        """This process's micro-batches of all steps from `start` on, which `backward` takes in
        their order.
        """
        mine = processes.micro_batches_of_rank(
            self.batch_size, self.micro, self.rank, self.world_size
        )
        steps, pin = range(start, self.steps), self.device.type == "cuda"
        return one_ahead(
            micro_batches(self.train_set, self.seed, steps, self.batch_size, self.micro, mine, pin)
        )

    def open_exchange(self) -> None:
        """Wrap the loss in DDP, with data parallelism, and run one empty step.

        DistributedDataParallel lays out its buckets anew after the first backward pass, and the
        layout decides the order in which three processes or more add up. Once this is done before
        the first step, every step of a resumed run adds up as in a run that was never stopped.
        """
        if self.world_size == 1 or self.sharded:
            return
        self.parallel = processes.parallel_loss(self.model)
        empty = self.host_tensors(self.train_set, np.zeros(0, dtype=np.int64))
        self.parallel(self.to_device(empty)).backward()
        self.model.zero_grad(set_to_none=True)

    def backward(
        self, step: int, coming: Iterator[MicroBatch]
    ) -> tuple[float, MicroBatch, str | None]:
        """The gradients of a step's global batch, of the mean over its labels.

        Returns:
            This process's part of the summed loss (nats), the last of its micro-batches, and why
            its rows could not be
            read: then the step must not be taken, in any process.
        """
        unread: str | None = None
        rounds = len(
            processes.micro_batches_of_rank(self.batch_size, self.micro, self.rank, self.world_size)
        )
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i in range(rounds):
            with self.meter.waiting("loader"):
                try:
                    part = next(coming) if unread is None else self._nothing(step)
                except (
                    UserError
                ) as error:  # the others must not wait in vain for this process's gradients
                    unread, part = str(error), self._nothing(step)
                tensors = self.to_device(part.tensors)
            assert part.step == step
            torch.manual_seed(
                ((self.seed * 1_000_003 + step) * 1_000_003 + part.number) % 2**63
            )  # dropout
            last = i == rounds - 1
            # A sharded model has no room for whole gradients: it adds up the processes' after each
            # micro-batch.
            with (
                self.parallel.no_sync()
                if isinstance(self.parallel, DistributedDataParallel) and not last
                else nullcontext()
            ):
                loss = self.parallel(tensors) if self.parallel else self.model.loss(**tensors)
                # Summed over the processes, of which DistributedDataParallel takes the mean, and
                # divided by all labels.
                (loss / (part.labels / self.world_size)).backward()
            total += loss.detach()
        return float(total), part, unread

    def _nothing(self, step: int) -> MicroBatch:
        """Return a micro-batch without labels, which joins the collectives and adds nothing."""
        none = np.zeros(0, dtype=np.int64)
        return MicroBatch(step, 0, none, 1, self.host_tensors(self.train_set, none))

    def clip(self, limit: float) -> float:
        """Scale the gradients down to the norm `limit`; returns the norm that they had, over all
        processes' parts.
        """
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = whole(
            torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        )
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return float(norm)

    @torch.no_grad()
    def evaluate(self, data: Dataset) -> float:
        """Mean loss (nats per predicted token) over all rows in order, with fixed shapes; processes
        share the rows.
        """
        self.model.eval()
        total, count = 0.0, 0
        # Equally many for each process, since those of a sharded model compute together; the last
        # may be empty.
        mine = processes.micro_batches_of_rank(
            data.num_rows, self.micro, self.rank, self.world_size
        )
        every = np.arange(data.num_rows)
        ids = [every[number * self.micro : (number + 1) * self.micro] for number in mine]
        with (
            deterministic(self.settings.deterministic, self.compiled),
            closing(
                one_ahead(
                    self.host_tensors(data, p) for p in announced(data, iter(ids), lambda p: p)
                )
            ) as coming,
        ):
            for part, tensors in zip(ids, coming, strict=True):
                count += int(data.label_counts(part).sum())
                on_device = self.to_device(tensors)
                total += float(
                    self.parallel(on_device) if self.sharded else self.model.loss(**on_device)
                )
        if self.sharded:
            self.parallel.reshard()
        self.model.train()
        all_total, all_count = processes.all_reduce_sum([total, float(count)], self.device)
        return all_total / all_count

    def gather(self) -> None:
        """Bring the model, of a sharded one all parts, to the first process's host memory, to be
        written.

        It ends training.
        """
        if self.sharded:
            unshard(self.model, keep=self.rank == 0)
        else:
            self.model.to("cpu")

    def host_tensors(self, data: Dataset, ids: np.ndarray) -> dict[str, Tensor]:
        """Rows as one micro-batch on the host: arguments of Transformer.loss, each (micro-batch,
        length).
        """
        return host_tensors(data, ids, self.micro, pin=self.device.type == "cuda")

    def to_device(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors on the device."""
        return {key: value.to(self.device, non_blocking=True) for key, value in tensors.items()}

    def describe(self) -> Iterator[str]:
        """Yield lines that tell a person what is about to be computed, and how."""
        config = self.model.config
        trained = sum(p.numel() for p in self.trainable().values())
        epochs = self.steps * self.batch_size / self.train_set.num_rows
        yield (
            f"{config.parameters():,} parameters"
            + (f", {trained:,} of them trained" if trained < config.parameters() else "")
            + f" · {self.steps:,} steps of {self.settings.batch_tokens:,} tokens ({epochs:.2f} epochs) · "
            f"{self.flops:.2e} FLOPs"
        )
        how = [
            hardware.name(self.device),
            str(self.model.compute_dtype).removeprefix("torch."),
            "compiled (the first step takes longer)" if self.compiled else "not compiled",
            f"micro-batch {self.micro} × {self.length} tokens",
        ]
        if self.world_size > 1:
            how.insert(3, f"{self.world_size} processes{', sharded' if self.sharded else ''}")
        yield " · ".join(how)

    def conditions(self) -> dict[str, Any]:
        """Return how the run is computed, for the timing file."""
        return {
            "device": hardware.name(self.device),
            "dtype": str(self.model.compute_dtype).removeprefix("torch."),
            "compiled": self.compiled,
            "processes": self.world_size,
            "sharded": self.sharded,
            "micro_batch": self.micro,
        }

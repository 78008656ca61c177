"""The measurement of one technique, in a process of its own.

    python -m llm.experiments.techniques.measure NAME STEPS OUTPUT

Memory is that of tensors, so that it means the same on a CPU and on a GPU. The activations are the
peak of a forward and backward pass of one micro-batch, without weights, gradients and optimizer
state.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm import params
from llm.experiments.techniques.rows import TECHNIQUES, settings_of
from llm.runtime.io import write_json
from llm.runtime.stage import run_stage
from llm.runtime.timing import peak_memory_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

MIX = Path("data/mix")
VAL_BATCHES = 8  # batches of validation examples for the loss, or fewer if there are no more
WARM = 2  # steps that do not count for the time: the first ones allocate


def measure(p: params.Params, name: str, steps: int) -> dict[str, Any]:
    """Return the figures of technique `name` after `steps` optimizer steps on data/mix.

    Raises:
        UserError: as in the stage finetune.
    """
    from llm.parallel import processes
    from llm.train.finetuning import Finetuning
    from llm.train.training_log import Untracked

    technique = next(t for t in TECHNIQUES if t.name == name)
    s = settings_of(technique, p.finetune)
    run = Finetuning(p.model_copy(update={"finetune": s}), MIX, "techniques", steps)
    model, data, val = run.model, run.train_set, run.val_set.head(VAL_BATCHES * s.batch_tokens)
    trainer = run.trainer(Untracked(), val)
    engine = trainer.engine
    engine.micro = processes.balanced_micro_batch(
        technique.rows or engine.batch_size, engine.batch_size, 1
    )
    batches = engine.batches(0)
    before = engine.evaluate(val)
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        trainer.step(step, batches)
        seconds.append(time.perf_counter() - began)
    process = peak_memory_bytes()
    batches.close()
    loss = engine.evaluate(val)
    row = engine.to_device(engine.host_tensors(data, data_rows(engine.micro, data.num_rows)))
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    memory = {
        "weights": tensor_bytes([*model.parameters(), *model.buffers()]) + scale_bytes(model),
        "gradients": tensor_bytes(trainable),  # of their parameters' type
        "optimizer": tensor_bytes(engine.optimizers.tensors().values()),
        "activations": passing_bytes(
            lambda: model.loss(**row).backward(), trainable, engine.device
        ),
    }
    return {
        "name": name,
        "label": technique.label,
        "beside": technique.beside,
        "memory": memory,
        "peak_bytes": sum(memory.values()),
        "process_peak_bytes": process,
        "step_seconds": statistics.median(seconds[WARM:] or seconds),
        "loss_before": before,
        "loss": loss,
        "tokens": steps * s.batch_tokens,
        "learning_rate": s.learning_rate,
        "parameters": model.config.parameters(),
        "trainable_parameters": sum(parameter.numel() for parameter in trainable),
        "rows": engine.micro,
        "batch_rows": engine.batch_size,
        "activation_type": str(model.compute_dtype).removeprefix("torch."),
        "checkpointing": technique.checkpointing,
        "method": technique.method,
    }


def data_rows(count: int, available: int) -> Any:
    """Return the numbers of `count` rows; the first ones repeat if there are too few."""
    import numpy as np

    return np.arange(count, dtype=np.int64) % available


def tensor_bytes(tensors: Any) -> int:
    """Return the memory of tensors; shared storage counts once."""
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def scale_bytes(model: nn.Module) -> int:
    """Return the bytes beside 4-bit matrices: scales, the scales of scales, and the code."""
    from llm.model.quantized import QuantizedLinear

    states = [module.state for module in model.modules() if isinstance(module, QuantizedLinear)]
    nested = [state.state2 for state in states if state.state2 is not None]
    parts = [part for state in (*states, *nested) for part in (state.absmax, state.code)]
    return tensor_bytes(part for part in parts if part is not None)


def passing_bytes(
    run: Callable[[], None], trainable: list[nn.Parameter], device: torch.device
) -> int:
    """Return the peak memory of `run`, a forward and backward pass, above that before it.

    A first run allocates the gradients, to which the second, measured one adds.
    """
    import torch

    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
        ) as profile:
            run()
        # Each allocation, and with a minus each release, of PyTorch's allocator.
        results = profile.profiler.kineto_results  # type: ignore[union-attr]
        changes = sorted(
            (e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"
        )
        peak = held = 0
        for _, change in changes:
            held += change
            peak = max(peak, held)
    for parameter in trainable:
        parameter.grad = None
    return peak


def main() -> None:
    name, steps, output = sys.argv[1:]
    with tempfile.TemporaryDirectory() as root:  # for the state that a non-finite loss leaves
        os.environ["DVC_ROOT"] = root
        write_json(output, measure(params.load(), name, int(steps)))


if __name__ == "__main__":
    run_stage(main)

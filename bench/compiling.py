"""When torch.compile pays on this CPU, and with which attention: eager, compiled, and compiled
around PyTorch's kernel.

    python bench/compiling.py [--seconds 20]

The three take turns on the same micro-batch (forward and backward) in one process; figures are the
20th percentile of their times. The compiler starts without a cache; its second start, with it, is a
process of its own."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SHAPES = {  # name: hidden, intermediate, layers, heads, key-value heads, sequence, micro-batch
    "5M, params.yaml": (256, 704, 4, 4, 2, 512, 4),
    "5M, sequence 128": (256, 704, 4, 4, 2, 128, 16),
    "5M, sequence 1024": (256, 704, 4, 4, 2, 1024, 2),
    "25M": (512, 1408, 8, 8, 8, 512, 4),
    "25M, sequence 1024": (512, 1408, 8, 8, 8, 1024, 2),
}


def measure(name: str, seconds: float, only: str | None) -> dict[str, float]:
    """Seconds a pass, and until the first pass is through, by variant."""
    import numpy as np
    import torch
    from torch import Tensor
    from torch.nn import functional as F

    from llm.model import attention
    from llm.model.config import Config
    from llm.model.transformer import Transformer
    from llm.parallel import hardware

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        groups = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)

    hidden, intermediate, layers, heads, kv_heads, length, micro = SHAPES[name]
    config = Config(
        4096, hidden, intermediate, layers, heads, kv_heads, 64, length, 1e4, 1e-6, False, True
    )
    dtype = hardware.precision("auto", torch.device("cpu"))
    ids = torch.randint(0, 4096, (micro, length), generator=torch.Generator().manual_seed(0))
    plain = attention.attend
    found: dict[str, float] = {}
    models: dict[str, Any] = {}

    def one_pass(model: Transformer) -> float:
        began = time.perf_counter()
        model.loss(ids, ids).backward()
        return time.perf_counter() - began

    for variant in (only,) if only else ("eager", "compiled", "compiled, kernel"):
        model = Transformer(config)
        model.initialize(0)
        model.compute_dtype = dtype
        attention.attend = kernel if variant == "compiled, kernel" else plain
        if variant != "eager":
            model.compile_parts()
        found[f"{variant}: first"] = one_pass(model)
        models[variant] = model
    times: dict[str, list[float]] = {variant: [] for variant in models}
    end = time.perf_counter() + (0 if only else seconds)
    while time.perf_counter() < end:
        for variant, model in models.items():
            # Guards see which attention a model was traced with: it must be in place for each one's
            # turn.
            attention.attend = kernel if variant == "compiled, kernel" else plain
            times[variant].append(one_pass(model))
    found |= {variant: float(np.percentile(taken, 20)) for variant, taken in times.items() if taken}
    found["flops"] = config.flops_per_token(length) * ids.numel()
    found["rate"] = hardware.matmul_flops_per_second(torch.device("cpu"), dtype)
    return found


def in_a_process(name: str, seconds: float, cache: str, *more: str) -> dict[str, float]:
    """`measure` with a compiler's cache of its own."""
    command = [sys.executable, __file__, "--child", name, "--seconds", str(seconds), *more]
    environment = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": cache,
        "LLM_DEVICE": "cpu",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of measured passes a shape")
    parser.add_argument("--shape", choices=SHAPES, help="this one alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child, arguments.seconds, arguments.only)))
        return
    print(
        "| shape | eager | compiled | compiled, kernel | GFLOP/s (of the matrix rate) | start | pays from FLOPs |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in [arguments.shape] if arguments.shape else SHAPES:
        with tempfile.TemporaryDirectory() as cache:
            cold = in_a_process(name, arguments.seconds, cache)
            again = in_a_process(name, arguments.seconds, cache, "--only", "compiled")
        eager, compiled, kernel = (
            cold[variant] for variant in ("eager", "compiled", "compiled, kernel")
        )
        starts = [run["compiled: first"] - compiled for run in (cold, again)]
        pays = [
            start / (eager - compiled) * cold["flops"] if eager > compiled else float("inf")
            for start in starts
        ]
        rates = [cold["flops"] / taken for taken in (eager, compiled)]
        print(
            f"| {name} | {1e3 * eager:.0f} ms | {1e3 * compiled:.0f} ms | {1e3 * kernel:.0f} ms | "
            + " → ".join(f"{rate / 1e9:.0f} ({rate / cold['rate']:.2f})" for rate in rates)
            + f" | {starts[0]:.1f} s, cached {starts[1]:.1f} s | {pays[0]:.1e}, cached {pays[1]:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()

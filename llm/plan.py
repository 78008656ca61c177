"""What a run will take, before it takes it."""

from __future__ import annotations

from llm import params
from llm.model.config import Config
from llm.train import hardware


def show_plan() -> None:
    """Print size, steps, FLOPs, memory and time of pretraining by params.yaml, and the compute-optimal size."""
    p = params.load()
    config = Config(vocab_size=p.tokenize.vocab_size, **p.model.model_dump())
    device = hardware.device()
    dtype = hardware.precision(p.pretrain.precision, device)
    n, tokens = config.parameters(), p.pretrain.steps * p.pretrain.batch_tokens
    flops = config.flops_per_token(p.pretrain.sequence_length) * tokens
    rate = hardware.matmul_flops_per_second(device, dtype)
    micro = hardware.micro_batch(
        config, p.pretrain.sequence_length, p.pretrain.batch_tokens // p.pretrain.sequence_length, device
    )
    # Hoffmann et al. 2022 (arXiv:2203.15556): about 20 tokens a parameter, C = 6 N D.
    optimal = (flops / 120) ** 0.5
    rows = [
        ("architecture", config.architecture),
        ("parameters", f"{n:,}"),
        ("tokens", f"{tokens:,} in {p.pretrain.steps:,} steps of {p.pretrain.batch_tokens:,}"),
        ("tokens per parameter", f"{tokens / n:.1f}"),
        ("FLOPs", f"{flops:.3g}"),
        ("Chinchilla optimum", f"{optimal:,.0f} parameters and {20 * optimal:,.0f} tokens for these FLOPs"),
        ("device", f"{hardware.name(device)}, {str(dtype).removeprefix('torch.')}, {rate / 1e9:,.0f} GFLOP/s measured"),
        ("micro-batch", f"{micro} sequences of {p.pretrain.sequence_length} tokens"),
        (
            "time",
            f"{flops / rate / 60:.1f} min at the matrix-product rate, {flops / rate / 36:.1f} min at 60 % of it",
        ),
        ("weights and optimizer", f"{16 * n / 1e6:,.0f} MB (weights, gradients, two moments; float32)"),
        ("state on disk", f"{2 * 12 * n / 1e6:,.0f} MB (two checkpoints)"),
    ]
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:{width}}  {value}")

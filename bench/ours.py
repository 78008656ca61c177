"""Children that train with this project's engine: llm.train.trainer's own step on
llm.model.transformer's model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from shapes import Shape
from workers import Gate

ROOT = Path(__file__).resolve().parent.parent


class NoTracker:
    """A tracker that logs nothing."""

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Forget them."""


class Offsets:
    """Training rows that start at any token, as nanoGPT draws them; row i predicts tokens i+1 …
    i+length.
    """

    def __init__(self, ids: np.ndarray, length: int) -> None:
        self.ids, self.length = ids.astype(np.int64), length
        self.num_rows = len(ids) - length

    def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, None, None]:
        """tokens and targets (rows, length)."""
        at = ids[:, None] + np.arange(self.length)
        return self.ids[at], self.ids[at + 1], None, None

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        """Predicted tokens of each row."""
        return np.full(len(ids), self.length)


def trainer(
    shape: Shape,
    tokens: Path,
    folder: Path,
    steps: int,
    seed: int = 1,
    any_offset: bool = False,
    qk_norm: bool = False,
    tied: bool = True,
    to_shard: bool = False,
    **settings: Any,
) -> tuple[Any, Any]:
    """A Trainer of `shape` on the shards in `tokens`, and its batches; `settings` replace
    params.yaml's. The state lies in `folder`.
    """
    os.environ["DVC_ROOT"] = str(folder)
    from llm import params
    from llm.data.shards import TokenStream
    from llm.data.windows import TokenWindows
    from llm.model.config import Config
    from llm.model.transformer import Transformer
    from llm.train.checkpoint.local import State
    from llm.train.initial_model import new_model_to_shard
    from llm.train.trainer import Trainer

    train, val = TokenStream(tokens, "train"), TokenStream(tokens, "val")
    pretrain = params.load(ROOT / "params.yaml").pretrain.model_copy(
        update={"sequence_length": shape.block, "batch_tokens": shape.batch_tokens, **settings}
    )
    config = Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.head_dim,
        max_position_embeddings=shape.block,
        rope_theta=10000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        qk_norm=qk_norm,
    )
    model = new_model_to_shard(config, seed, induction=False) if to_shard else Transformer(config)
    if not to_shard:
        model.initialize(seed)
    train_set = (
        Offsets(train.read(0, len(train)), shape.block)
        if any_offset
        else TokenWindows(train, shape.block, True)
    )
    val_set = TokenWindows(
        val, shape.block, True
    )  # whole windows only, as nanoGPT's block size cuts them
    state = State("bench", {"shape": shape.name, "seed": seed, "steps": steps, **settings})
    state.directory.mkdir(parents=True, exist_ok=True)
    run = Trainer(model, train_set, val_set, val_set, pretrain, steps, seed, state, NoTracker())
    return run, run.engine.batches(0)


def train(gate: Gate, shape: Shape, tokens: Path, folder: Path, **settings: Any) -> None:
    """Steps without end."""
    steps = 100_000
    run, batches = trainer(shape, tokens, folder, steps, **settings)
    gate.begin()
    for step in range(steps):
        run.step(step, batches)
        gate.step_done()


def train_to_end(
    gate: Gate, shape: Shape, tokens: Path, folder: Path, steps: int, **settings: Any
) -> dict[str, Any]:
    """All `steps`, then the loss on the whole validation split, outside the timed seconds."""
    run, batches = trainer(shape, tokens, folder, steps, **settings)
    gate.begin()
    for step in range(steps):
        run.step(step, batches)
        gate.step_done(last=step == steps - 1)
    return {
        "val_loss": run.engine.evaluate(run.val_set),
        "val_tokens": run.val_set.num_rows * shape.block,
        "parameters": run.engine.model.config.parameters(),
        "compiled": run.engine.compiled,
        "dtype": str(run.engine.model.compute_dtype).removeprefix("torch."),
    }


def matmul_rates(gate: Gate) -> None:
    """Matrix-product rates (FLOP/s) of this moment, as llm.parallel.hardware measures its ceiling."""
    import torch

    from llm.parallel import hardware

    where = hardware.device()
    gate.begin()
    while True:
        kinds = {"bf16": torch.bfloat16, "fp32": torch.float32}
        gate.step_done(
            {name: hardware.matmul_flops_per_second(where, kind) for name, kind in kinds.items()}
        )


def flops_per_token(gate: Gate, shape: Shape) -> float:
    """Training FLOPs per token: 6 per matrix weight and causal attention (llm.model.config)."""
    import llm.model.config as model

    config = model.Config(
        shape.vocab,
        shape.hidden,
        shape.intermediate,
        shape.layers,
        shape.heads,
        shape.heads,
        shape.head_dim,
        shape.block,
        1e4,
        1e-6,
        True,
    )
    return config.flops_per_token(shape.block)

"""Children that train with other people's code, each with its own training loop as it stands.

A hook that PyTorch calls after every optimizer step tells the driver; the loops themselves are not
touched. Nothing of
nanoGPT is here: its train.py runs out of the checkout that `--nanogpt` names.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Any

from shapes import Shape
from workers import Gate, mark_optimizer_steps

FOREVER = 1_000_000  # steps


def hugging_face(gate: Gate, shape: Shape, tokens: Path, folder: Path, **arguments: Any) -> None:
    """transformers.Trainer with LlamaForCausalLM and its defaults, but for what would only write
    files.
    """
    import numpy as np
    import torch
    from torch.utils.data import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    class Windows(Dataset):
        ids = np.load(tokens / "train-00000.npy", mmap_mode="r")

        def __len__(self) -> int:
            return (len(self.ids) - 1) // shape.block

        def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
            window = torch.from_numpy(
                self.ids[i * shape.block : (i + 1) * shape.block].astype(np.int64)
            )
            return {"input_ids": window, "labels": window}

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.block,
        tie_word_embeddings=True,
    )
    torch.manual_seed(1)
    settings = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=shape.micro,
        gradient_accumulation_steps=shape.accumulate,
        max_steps=FOREVER,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **arguments,
    )
    trainer = Trainer(LlamaForCausalLM(config), settings, train_dataset=Windows())
    mark_optimizer_steps(gate)
    gate.begin()
    trainer.train()


def nanogpt(
    gate: Gate,
    checkout: Path,
    tokens: Path,
    folder: Path,
    arguments: dict[str, Any],
    config: str = "",
) -> None:
    """nanoGPT's train.py, with `--key=value` arguments; it reads train.bin, val.bin and meta.pkl
    from `tokens`.
    """
    os.chdir(checkout)
    sys.path.insert(0, str(checkout))
    arguments = {
        "device": "cpu",
        "compile": False,
        "dataset": str(tokens),
        "out_dir": str(folder),
        **arguments,
    }
    sys.argv = [
        "train.py",
        *([config] if config else []),
        *(f"--{key}={value}" for key, value in arguments.items()),
    ]
    mark_optimizer_steps(gate)
    gate.begin()
    runpy.run_path("train.py", run_name="__main__")


def nanogpt_shape(shape: Shape) -> dict[str, Any]:
    """nanoGPT's arguments for a GPT of this width and depth, and no evaluation."""
    return {
        "n_layer": shape.layers,
        "n_head": shape.heads,
        "n_embd": shape.hidden,
        "block_size": shape.block,
        "batch_size": shape.micro,
        "gradient_accumulation_steps": shape.accumulate,
        "eval_interval": FOREVER,
        "eval_iters": 1,
        "max_iters": FOREVER,
        "lr_decay_iters": FOREVER,
    }


def nanogpt_loss(gate: Gate, checkout: Path, tokens: Path, folder: Path) -> dict[str, Any]:
    """Loss of the checkpoint that train.py wrote, with nanoGPT's own model, on all whole blocks of
    val.bin.
    """
    import numpy as np
    import torch

    sys.path.insert(0, str(checkout))
    from model import GPT, GPTConfig

    checkpoint = torch.load(folder / "ckpt.pt", map_location="cpu")
    model = GPT(GPTConfig(**checkpoint["model_args"]))
    model.load_state_dict(checkpoint["model"])
    model.eval()
    ids = torch.from_numpy(np.fromfile(tokens / "val.bin", dtype=np.uint16).astype(np.int64))
    block = model.config.block_size
    rows = (len(ids) - 1) // block
    inputs, targets = (
        ids[: rows * block].view(rows, block),
        ids[1 : rows * block + 1].view(rows, block),
    )
    total = 0.0
    with torch.no_grad():
        for first in range(0, rows, 64):
            logits, _ = model(inputs[first : first + 64], targets[first : first + 64])
            wanted = targets[first : first + 64]
            total += float(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), wanted.flatten(), reduction="sum"
                )
            )
    return {
        "val_loss": total / (rows * block),
        "val_tokens": rows * block,
        "parameters": model.get_num_params(False),
        "iterations": checkpoint["iter_num"],
    }


def litgpt(gate: Gate, shape: Shape, tokens: Path, folder: Path) -> None:
    """litgpt's own pretraining (its defaults: compiled, bf16-mixed) on a Llama-style configuration."""
    import numpy as np
    import torch
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.data import DataModule
    from litgpt.pretrain import setup
    from torch.utils.data import DataLoader

    class Tokens(DataModule):
        def connect(
            self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int | None = None
        ) -> None:
            self.batch_size = batch_size

        def train_dataloader(self) -> DataLoader:
            ids = np.load(tokens / "train-00000.npy", mmap_mode="r")
            count = (len(ids) - 1) // shape.block
            rows = [
                ids[i * shape.block : (i + 1) * shape.block + 1].astype(np.int64)
                for i in range(count)
            ]
            return DataLoader(
                [torch.from_numpy(row) for row in rows], batch_size=self.batch_size, shuffle=True
            )

        val_dataloader = train_dataloader

    config = Config(
        name="bench",
        block_size=shape.block,
        vocab_size=shape.vocab,
        padded_vocab_size=shape.vocab,
        n_layer=shape.layers,
        n_head=shape.heads,
        n_embd=shape.hidden,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=shape.intermediate,
    )
    mark_optimizer_steps(gate)
    gate.begin()
    setup(
        "bench",
        config,
        out_dir=folder,
        data=Tokens(),
        train=TrainArgs(
            save_interval=None,
            log_interval=10,
            global_batch_size=shape.micro * shape.accumulate,
            micro_batch_size=shape.micro,
            max_tokens=FOREVER * shape.batch_tokens,
            max_norm=1.0,
            lr_warmup_steps=100,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=FOREVER, max_iters=1, final_validation=False),
        logger_name="csv",
    )

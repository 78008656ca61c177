"""Loss at equal text, tokens and size: nanoGPT's recipe (bench/gpt.py) and this project's, over
seeds.

The text is the project's own (`dvc repro tokenize`), or `--text` cut into bytes. Each run is its
own process and is stored on its own, so that a long comparison can be made in parts (`--runs`).
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import ours
import results
from shapes import Shape, write_tokens
from workers import Gate, Worker

TOKENS = 2_000_000  # of training, the same ones in both
WARMUP = 0.05  # of the reference's steps: nanoGPT's 100 of 2,000 to 5,000 for small networks
RUNS = (  # nanoGPT says 1e-3 for "baby networks"; other rates are tried for fairness
    "reference@1e-3@1",
    "reference@2e-3@1",
    "reference@4e-3@1",
    "ours@1",
    "reference@2e-3@2",
    "ours@2",
)


def _shape(vocab: int) -> Shape:
    return Shape(
        "recipe",
        vocab,
        hidden=256,
        intermediate=688,
        layers=4,
        heads=4,
        block=256,
        micro=8,
        accumulate=2,
    )


def _steps(shape: Shape) -> int:
    return TOKENS // shape.batch_tokens


def reference(
    gate: Gate, shape: Shape, tokens: Path, folder: Path, seed: int, rate: float
) -> dict[str, Any]:
    """nanoGPT's recipe over the very batches that our engine draws for this seed."""
    import math

    import torch
    from gpt import GPT

    from llm.data.order import batch_ids
    from llm.data.shards import TokenStream
    from llm.data.windows import TokenWindows
    from llm.parallel import hardware

    model = GPT(shape.vocab, shape.hidden, shape.layers, shape.heads, shape.block, seed)
    model.compute_dtype = hardware.precision("auto", torch.device("cpu"))
    for block in model.blocks:
        block.compile(dynamic=False)
    optimizer = model.optimizer(rate)
    train_set, val_set = (
        TokenWindows(TokenStream(tokens, split), shape.block, True) for split in ("train", "val")
    )
    steps = _steps(shape)
    size = shape.batch_tokens // shape.block

    def sums(data: TokenWindows, ids: np.ndarray) -> Any:
        rows = data.rows(ids)
        return model.loss(torch.from_numpy(rows.tokens), torch.from_numpy(rows.targets))

    gate.begin()
    for step in range(steps):
        ids = batch_ids(seed, step, size, train_set.num_rows)
        for part in np.split(ids, shape.accumulate):
            (sums(train_set, part) / shape.batch_tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = WARMUP * steps
        share = 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
        lr = rate * (step + 1) / (warm + 1) if step < warm else rate * (0.1 + 0.9 * share)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        gate.step_done(last=step == steps - 1)
    model.eval()
    with torch.no_grad():
        whole = val_set.num_rows // shape.micro * shape.micro
        batches = np.arange(whole).reshape(-1, shape.micro)
        total = sum(float(sums(val_set, batch)) for batch in batches)
    return {
        "val_loss": total / (whole * shape.block),
        "val_tokens": whole * shape.block,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _text(folder: Path, text: Path | None) -> tuple[Path, int]:
    """The folder of shards, and the vocabulary's size."""
    if text is None:
        found = ours.ROOT / "data" / "tokens"
        if not (found / "meta.json").is_file():
            raise SystemExit(
                "recipe: no data/tokens here. Run `dvc repro tokenize` first, or give --text PATH."
            )
        return found, int(
            json.loads((found / "meta.json").read_text(encoding="utf-8"))["vocab_size"]
        )
    ids = np.frombuffer(text.read_bytes(), dtype=np.uint8)
    write_tokens(folder / "tokens", ids[: int(0.9 * len(ids))], ids[int(0.9 * len(ids)) :], 256)
    return folder / "tokens", 256


def run(folder: Path, text: Path | None, wanted: list[str]) -> None:
    """Each run of `wanted` (`reference@RATE@SEED`, `ours@SEED` or `ours-tied@SEED`), one after
    another; store each.
    """
    tokens, vocab = _text(folder, text)
    shape = _shape(vocab)
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    for name in wanted:
        kind, *numbers = name.split("@")
        common: dict[str, Any] = {
            "shape": shape,
            "tokens": tokens,
            "folder": folder / name,
            "seed": int(numbers[-1]),
        }
        if kind == "reference":
            child = Worker(
                reference, folder / f"{name}.log", cache, rate=float(numbers[0]), **common
            )
        else:
            child = Worker(
                ours.train_to_end,
                folder / f"{name}.log",
                cache,
                steps=_steps(shape),
                qk_norm=True,
                tied=kind == "ours-tied",
                **common,
            )
        began = time.perf_counter()
        child.steps(_steps(shape))
        took = time.perf_counter() - began
        figures = child.result() | {"seconds": took, "tokens": _steps(shape) * shape.batch_tokens}
        print(f"recipe {name}: loss {figures['val_loss']:.4f} after {took:.0f} s", flush=True)
        results.store("recipe", name, figures | {"machine": results.machine(), "vocab": vocab})


def show() -> str:
    """The table of what is stored."""
    found = results.stored("recipe")
    if not found:
        return "### Better per step: not measured"
    one = next(iter(found.values()))
    lines = []
    for name in sorted(found):
        row = found[name]
        kind, *numbers = name.split("@")
        label = {"ours": "ours, params.yaml's settings", "ours-tied": "ours, tied embeddings"}.get(
            kind, f"nanoGPT's recipe, rate {numbers[0]}"
        )
        lines.append(
            [
                label,
                numbers[-1],
                f"{row['parameters']:,}",
                f"{row['val_loss']:.4f}",
                f"{row['seconds']:.0f}",
            ]
        )
    return (
        f"### Better per step\n\n{one['tokens']:,} training tokens, vocabulary {one['vocab']:,}, loss on whole windows "
        f"of the validation split. {one['machine']['machine']}, torch {one['machine']['torch']}, "
        f"{one['machine']['date']}.\n\n"
        + results.table(("", "seed", "parameters", "val loss", "seconds"), lines)
    )

"""Peak memory of a training step with a vocabulary of 32,768, and of the loss alone."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import losses
import ours
import peers
import results
from shapes import MEMORY, random_tokens
from workers import Worker, call

SHARE, TIMES_LESS, LOSS_ERROR, FLOAT_ERROR = 0.6, 5.0, 1e-4, 1e-5  # goals of issue 3
TOKENS, VOCAB, WIDTH = 4096, 32768, 512  # of the loss alone


def steps(folder: Path) -> dict[str, Any]:
    """Peak resident memory after three steps, each framework in a process of its own, one after
    another.
    """
    tokens = folder / "tokens"
    random_tokens(tokens, MEMORY.vocab)
    common: dict[str, Any] = {"shape": MEMORY, "tokens": tokens}
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    adamw = {"optimizer": "adamw"}
    rows: dict[str, tuple[Any, dict[str, Any]]] = {
        "ours, first run (compiles)": (ours.train, {"folder": folder / "ours", **adamw}),
        "ours": (ours.train, {"folder": folder / "ours", **adamw}),
        "ours, Muon": (ours.train, {"folder": folder / "ours", "optimizer": "muon"}),
    }
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate"):
        rows["Trainer, its defaults"] = (peers.hugging_face, {"folder": folder / "hf"})
        rows["Trainer, `bf16=True`"] = (peers.hugging_face, {"folder": folder / "hf", "bf16": True})
    found = {}
    for name, (function, arguments) in rows.items():
        log = folder / f"{''.join(c if c.isalnum() else '-' for c in name)}.log"
        child = Worker(function, log, cache, **common, **arguments)
        seconds = child.steps(3)
        child.stop()
        found[name] = {"peak_memory": child.peak_memory, "step_seconds": seconds[-1]}
        print(f"memory: {name}: {child.peak_memory / 1e6:,.0f} MB", flush=True)
    return found


def loss_alone(folder: Path, rounds: int) -> dict[str, Any]:
    """Each kind of loss in a process of its own, in turns; then its errors."""
    sizes: dict[str, Any] = {"tokens": TOKENS, "vocab": VOCAB, "width": WIDTH, "dtype": "bfloat16"}
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    children = {
        kind: Worker(
            losses.measure, folder / f"{kind}.log", cache, kind=kind, cache=folder, **sizes
        )
        for kind in losses.KINDS
    }
    found: dict[str, Any] = {}
    for kind, child in list(children.items()):
        try:
            child.steps(1)  # compiles, allocates
        except RuntimeError as error:
            print(f"memory: no row for the loss {kind}: {error}")
            del children[kind]
    turns: dict[str, list[dict[str, float]]] = {kind: [] for kind in children}
    for _ in range(rounds):
        for kind, child in children.items():
            turns[kind] += child.steps(1)
    for kind, child in children.items():
        child.stop()
        found[kind] = {
            "seconds": results.median(turn["seconds"] for turn in turns[kind]),
            "extra_memory": max(turn["extra_memory"] for turn in turns[kind]),
        }
        for dtype in ("bfloat16", "float32"):
            small = sizes | {"dtype": dtype, "tokens": 1024}
            found[kind][dtype] = call(
                losses.errors, folder / f"{kind}-{dtype}.log", cache, kind=kind, **small
            )
    return found


def run(folder: Path, rounds: int) -> None:
    """Measure, store."""
    results.store("memory", "steps", {"rows": steps(folder), "machine": results.machine()})
    results.store(
        "memory", "loss", {"rows": loss_alone(folder, rounds), "machine": results.machine()}
    )


def show() -> str:
    """The tables of what is stored."""
    found = results.stored("memory")
    parts = ["### Memory"]
    if "steps" in found:
        rows = found["steps"]["rows"]
        trainer = rows.get("Trainer, its defaults", {}).get("peak_memory")
        lines = [
            [
                name,
                f"{row['peak_memory'] / 1e6:,.0f}",
                f"{row['peak_memory'] / trainer:.2f}" if trainer else "–",
            ]
            for name, row in rows.items()
        ]
        about = found["steps"]["machine"]
        parts.append(
            f"Peak resident memory of a training process (imports included), {MEMORY.parameters() / 1e6:.1f}M "
            f"parameters, vocabulary {MEMORY.vocab:,}, {MEMORY.micro} × {MEMORY.block} tokens a forward pass. "
            f"{about['machine']}, torch {about['torch']}, {about['date']}.\n\n"
            + results.table(("", "peak, MB", "share of Trainer's"), lines)
        )
        if trainer:
            share = rows["ours"]["peak_memory"] / trainer
            parts.append(
                f"- Share of Trainer's: {share:.2f} (goal {SHARE}: {results.against(share, SHARE, False)})."
            )
    if "loss" in found:
        rows = found["loss"]["rows"]

        def cell(row: dict[str, Any], dtype: str) -> str:
            e = row[dtype]
            return f"{e['loss']:.1e}, {e['by_hidden']:.1e}, {e['by_weight']:.1e}"

        lines = [
            [
                kind,
                f"{r['seconds']:.2f}",
                f"{r['extra_memory'] / 1e6:,.0f}",
                cell(r, "bfloat16"),
                cell(r, "float32"),
            ]
            for kind, r in rows.items()
        ]
        mine, naive = rows["chunks compiled"], rows["naive"]
        less = naive["extra_memory"] / mine["extra_memory"]
        faster = naive["seconds"] / mine["seconds"]
        gradient = max(mine["float32"]["by_hidden"], mine["float32"]["by_weight"])
        loss = max(mine["bfloat16"]["loss"], mine["float32"]["loss"])
        parts.append(
            f"The loss alone, both passes: {TOKENS:,} tokens, {WIDTH} wide, vocabulary {VOCAB:,}, bf16. Errors "
            "are relative (loss, gradient by hidden states, by weights), against float64 on the same inputs.\n\n"
            + results.table(
                ("", "seconds", "extra memory, MB", "errors, bf16", "errors, float32"), lines
            )
            + f"\n\n- Compiled chunks: {less:.1f} times less memory than naive (goal {TIMES_LESS:.0f}: "
            f"{results.against(less, TIMES_LESS, True)}), {faster:.2f} times its speed (goal 1: "
            f"{results.against(faster, 1.0, True)}), loss within {loss:.0e} (goal {LOSS_ERROR:.0e}: "
            f"{results.against(loss, LOSS_ERROR, False)}), float32 gradients within {gradient:.0e} (goal "
            f"{FLOAT_ERROR:.0e}: {results.against(gradient, FLOAT_ERROR, False)})."
        )
    return "\n\n".join(parts)

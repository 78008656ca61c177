"""Time to loss on character-level Shakespeare, against nanoGPT's own CPU configuration.

nanoGPT runs its train.py out of the checkout with the README's arguments. Ours trains the same
number of parameters with Muon, rotary positions, QK-norm, zero-initialised output projections,
batch 16 and linear decay to zero: what exports as Qwen3ForCausalLM. A rate that decays to zero must
    know its length, so `--ladder` first tries lengths and
prints each; then three runs alternate in slices: nanoGPT, ours at the shortest length that reached
nanoGPT's loss, and ours at the length that fills nanoGPT's time. Losses are taken outside the timed
seconds, on all whole blocks of the validation split.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ours
import peers
import results
from shapes import Shape, write_tokens
from workers import Worker, call

SHARE, AT_WALL = 0.12, 1.60  # goals of issue 3
STEPS = 2000  # of nanoGPT, by its README
REACHES = 170  # steps of ours that reach nanoGPT's loss: found by --ladder, see docs/BENCH.md
# nanoGPT's README: "python train.py config/train_shakespeare_char.py --device=cpu --compile=False
# ...", but for the evaluation inside the run, which comes at its end only.
CONFIG = "config/train_shakespeare_char.py"
ARGUMENTS: dict[str, Any] = {
    "eval_iters": 20,
    "log_interval": 1,
    "block_size": 64,
    "batch_size": 12,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "max_iters": STEPS + 1,
    "lr_decay_iters": STEPS,
    "dropout": 0.0,
    "eval_interval": STEPS,
}
# SwiGLU of 336 instead of GELU of 512, and an output matrix of its own: nanoGPT's number of
# parameters within 1 %.
SHAPE = Shape(
    "shakespeare",
    vocab=65,
    hidden=128,
    intermediate=336,
    layers=4,
    heads=4,
    block=64,
    micro=16,
    accumulate=1,
)
SETTINGS: dict[str, Any] = {
    "optimizer": "muon",
    "learning_rate": 0.02,
    "weight_decay": 0.1,
    "schedule": "wsd",
    "warmup_fraction": 0.0,
    "decay_fraction": 1.0,
    "min_lr_fraction": 0.0,
    # what it takes with a cache is a part of the seconds; without one it is told apart
    "compile": True,
    "precision": "bf16",
}


def prepare(text: Path, nanogpt: Path | None, tokens: Path) -> None:
    """Characters as nanoGPT numbers and splits them: by its own prepare.py where there is a
    checkout.
    """
    tokens.mkdir(parents=True, exist_ok=True)
    if nanogpt:
        shutil.copy(nanogpt / "data" / "shakespeare_char" / "prepare.py", tokens)
        shutil.copy(text, tokens / "input.txt")
        subprocess.run(
            [sys.executable, "prepare.py"], cwd=tokens, check=True, stdout=subprocess.DEVNULL
        )
        train, val = (
            np.fromfile(tokens / f"{split}.bin", dtype=np.uint16) for split in ("train", "val")
        )
        vocab = int(max(train.max(), val.max())) + 1
    else:
        characters = text.read_text(encoding="utf-8")
        numbers = {character: i for i, character in enumerate(sorted(set(characters)))}
        ids = np.array([numbers[character] for character in characters])
        train, val = ids[: int(len(ids) * 0.9)], ids[int(len(ids) * 0.9) :]
        vocab = len(numbers)
    write_tokens(tokens, train, val, vocab)
    if vocab != SHAPE.vocab:
        print(
            f"shakespeare: {text} has {vocab} characters, not 65: another text, other losses than nanoGPT's README"
        )


def _ours(tokens: Path, folder: Path, name: str, steps: int, vocab: int, **settings: Any) -> Worker:
    shape = Shape(**(vars(SHAPE) | {"vocab": vocab}))
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    return Worker(
        ours.train_to_end,
        folder / f"{name}.log",
        environment,
        shape=shape,
        tokens=tokens,
        folder=folder / name,
        steps=steps,
        any_offset=True,
        qk_norm=True,
        tied=False,
        **(SETTINGS | settings),
    )


def _vocab(tokens: Path) -> int:
    import json

    return int(json.loads((tokens / "meta.json").read_text(encoding="utf-8"))["vocab_size"])


def ladder(
    tokens: Path, folder: Path, lengths: tuple[int, ...], **settings: Any
) -> list[dict[str, Any]]:
    """Runs of each length; steps, seconds and loss of each."""
    found = []
    for steps in lengths:
        child = _ours(tokens, folder, f"ladder-{steps}", steps, _vocab(tokens), **settings)
        seconds = sum(child.steps(steps))
        run = child.result() | {"steps": steps, "seconds": seconds}
        print(
            f"shakespeare: ours, {steps} steps: loss {run['val_loss']:.4f} after {seconds:.1f} s",
            flush=True,
        )
        found.append(run)
    return found


def compare(
    tokens: Path, folder: Path, nanogpt: Path, steps: int, slices: int, long: int | None
) -> dict[str, Any]:
    """nanoGPT's run, ours of `steps`, and ours of `long` steps (default: what fills nanoGPT's
    time), in slices.
    """
    theirs = Worker(
        peers.nanogpt,
        folder / "nanogpt.log",
        checkout=nanogpt,
        tokens=tokens,
        folder=folder / "nanogpt-out",
        arguments=ARGUMENTS,
        config=CONFIG,
    )
    vocab = _vocab(tokens)
    theirs.steps(1)  # its first step holds its first evaluation: counted below as a median one
    took = theirs.steps(29)
    if long is None:
        trial = _ours(tokens, folder, "trial", 10_000, vocab)
        trial.steps(5)
        pairs = [
            (results.median(theirs.steps(20)), results.median(trial.steps(20))) for _ in range(3)
        ]
        trial.stop()
        took += [pair[0] for pair in pairs for _ in range(20)]
        long = int(0.97 * STEPS * results.median(a / b for a, b in pairs))
    short = _ours(tokens, folder, "short", steps, vocab)
    full = _ours(tokens, folder, "long", long, vocab)
    left = STEPS - 1 - len(took)
    mine: dict[str, list[float]] = {"short": [], "long": []}
    for i in range(slices):
        took += theirs.steps(
            left // slices if i < slices - 1 else left - (slices - 1) * (left // slices)
        )
        for name, child, total in (("short", short, steps), ("long", full, long)):
            count = total // slices if i < slices - 1 else total - (slices - 1) * (total // slices)
            mine[name] += child.steps(count)
    runs = {"short": short.result() | {"steps": steps}, "long": full.result() | {"steps": long}}
    theirs.steps(1)  # evaluates, and writes the checkpoint of STEPS updates before its update
    theirs.stop()
    took.append(results.median(took))
    for name, run in runs.items():
        run["seconds"] = sum(mine[name])
    found = call(
        peers.nanogpt_loss,
        folder / "loss.log",
        checkout=nanogpt,
        tokens=tokens,
        folder=folder / "nanogpt-out",
    )
    return {"nanogpt": found | {"steps": STEPS, "seconds": sum(took)}, **runs}


def run(folder: Path, nanogpt: Path | None, text: Path | None, asked: Any) -> None:
    """Prepare, try lengths, compare, store."""
    if text is None and nanogpt and (nanogpt / "data" / "shakespeare_char" / "input.txt").is_file():
        text = nanogpt / "data" / "shakespeare_char" / "input.txt"
    if text is None:
        print(
            "shakespeare: skipped, no text. Give --text PATH (tiny Shakespeare, 1,115,394 bytes; nanoGPT's "
            "data/shakespeare_char/prepare.py downloads it as input.txt) or --nanogpt PATH of a checkout that has it."
        )
        return
    tokens = folder / "tokens"
    prepare(text, nanogpt, tokens)
    first = _ours(
        tokens, folder, "first", 10, _vocab(tokens)
    )  # fills the compiler's cache, for this bench alone
    cold = first.steps(1)[0]
    first.stop()
    about = results.machine() | {"text": text.name, "cold_seconds": cold}
    if asked.ladder:
        tried = ladder(tokens, folder, tuple(asked.ladder))
        results.store("shakespeare", "ladder", {"runs": tried, "machine": about})
    if not nanogpt:
        print("shakespeare: no comparison with nanoGPT: give a checkout with --nanogpt PATH")
        return
    if asked.steps:
        figures = compare(tokens, folder, nanogpt, asked.steps, asked.slices, asked.long)
        results.store("shakespeare", "compare", figures | {"machine": about})


def show() -> str:
    """The tables of what is stored."""
    found = results.stored("shakespeare")
    parts = ["### Time to loss, character-level Shakespeare"]
    if "ladder" in found:
        lines = [
            [r["steps"], f"{r['val_loss']:.4f}", f"{r['seconds']:.1f}"]
            for r in found["ladder"]["runs"]
        ]
        parts.append(
            "Ours, each length a run of its own:\n\n"
            + results.table(("steps", "loss", "seconds"), lines)
        )
    if "compare" in found:
        run = found["compare"]
        theirs, short, long = run["nanogpt"], run["short"], run["long"]
        names = {
            "nanogpt": "nanoGPT train.py",
            "short": "ours, to its loss",
            "long": "ours, for its time",
        }
        lines = [
            [
                name,
                f"{run[key]['parameters']:,}",
                run[key]["steps"],
                f"{run[key]['seconds']:.1f}",
                f"{run[key]['seconds'] / theirs['seconds']:.3f}",
                f"{run[key]['val_loss']:.4f}",
            ]
            for key, name in names.items()
        ]
        share = short["seconds"] / theirs["seconds"]
        reached = short["val_loss"] <= theirs["val_loss"]
        parts.append(
            f"Loss on {theirs['val_tokens']:,} (ours {short['val_tokens']:,}) tokens of the validation split, context "
            f"64. {run['machine']['machine']}, torch {run['machine']['torch']}, {run['machine']['date']}.\n\n"
            + results.table(
                ("", "parameters", "steps", "training seconds", "share of nanoGPT's", "val loss"),
                lines,
            )
            + "\n\n- Ours is compiled, nanoGPT runs as its README says (`--compile=False`). The seconds of ours hold "
            f"what the compiler takes with its cache; the very first step on a machine takes "
            f"{run['machine']['cold_seconds']:.1f} s.\n- Time to nanoGPT's loss: {share:.3f} of its time"
            + ("" if reached else " WITHOUT reaching it")
            + f" (goal {SHARE}: {results.against(share, SHARE, False) if reached else 'NOT met'}).\n"
            f"- Loss at nanoGPT's time ({long['seconds'] / theirs['seconds']:.2f} of it used): {long['val_loss']:.4f} "
            f"(goal {AT_WALL:.2f}: {results.against(long['val_loss'], AT_WALL, False)})."
        )
    return "\n\n".join(parts)

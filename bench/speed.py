"""Tokens per second at equal shape and batch: this engine, Hugging Face Trainer, nanoGPT, litgpt."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import ours
import peers
import results
from shapes import SPEED, Shape, random_tokens
from workers import Worker, call

OURS = "ours"
RATIO, SHARE, COLD, CACHED = 2.3, 0.75, 20.0, 3.0  # goals of issue 3
ROWS = {
    OURS: "ours (AdamW, as the peers)",
    "ours, Muon": "ours (Muon, the default)",
    "trainer": "Hugging Face Trainer, its defaults (eager float32)",
    "trainer bf16": "Hugging Face Trainer, `bf16=True` (eager)",
    "trainer bf16 compiled": "Hugging Face Trainer, `bf16=True, torch_compile=True`",
    "nanogpt": "nanoGPT train.py, its CPU settings (eager float32)",
    "litgpt": "litgpt pretrain, its defaults (compiled, bf16-mixed)",
}


def workers(shape: Shape, folder: Path, nanogpt: Path | None) -> dict[str, Worker]:
    """A process for each row that can run here; says which cannot."""
    tokens = folder / "tokens"
    random_tokens(tokens, shape.vocab)
    common: dict[str, Any] = {"shape": shape, "tokens": tokens}
    cold = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache-ours")}
    found = {
        OURS: Worker(
            ours.train,
            folder / "ours.log",
            cold,
            folder=folder / "ours",
            optimizer="adamw",
            **common,
        ),
        "ours, Muon": Worker(
            ours.train,
            folder / "ours-muon.log",
            cold,
            folder=folder / "muon",
            optimizer="muon",
            **common,
        ),
    }
    if importlib.util.find_spec("transformers") and importlib.util.find_spec("accelerate"):
        for name, arguments in (
            ("trainer", {}),
            ("trainer bf16", {"bf16": True}),
            ("trainer bf16 compiled", {"bf16": True, "torch_compile": True}),
        ):
            log = folder / f"{name.replace(' ', '-')}.log"
            cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache-hf")}
            found[name] = Worker(
                peers.hugging_face, log, cache, folder=folder / "hf", **common, **arguments
            )
    else:
        print(
            "speed: no row for Hugging Face Trainer: transformers and accelerate are not installed (make setup)"
        )
    if nanogpt:
        arguments = peers.nanogpt_shape(shape)
        found["nanogpt"] = Worker(
            peers.nanogpt,
            folder / "nanogpt.log",
            None,
            checkout=nanogpt,
            tokens=tokens,
            folder=folder / "nanogpt-out",
            arguments=arguments,
        )
    else:
        print("speed: no row for nanoGPT: give a checkout with --nanogpt PATH")
    if importlib.util.find_spec("litgpt") and importlib.util.find_spec("lightning"):
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache-litgpt")}
        found["litgpt"] = Worker(
            peers.litgpt, folder / "litgpt.log", cache, folder=folder / "litgpt-out", **common
        )
    else:
        print("speed: no row for litgpt: it is not installed")
    return found


def measure(shape: Shape, folder: Path, nanogpt: Path | None, rounds: int) -> dict[str, Any]:
    """First steps, then `rounds` rounds in which everyone trains a few steps in turn."""
    children = workers(shape, folder, nanogpt)
    rates = Worker(ours.matmul_rates, folder / "rates.log")
    rates.steps(1)
    first: dict[str, float] = {}
    for name, child in list(children.items()):
        try:
            first[name] = child.steps(1)[0]
            child.steps(1)  # the second step may still allocate
            print(f"speed {shape.name}: {name}: first step {first[name]:.1f} s", flush=True)
        except RuntimeError as error:
            print(f"speed {shape.name}: no row for {name}: {error}")
            del children[name]
    took: dict[str, list[float]] = {name: [] for name in children}
    ceiling: list[dict[str, float]] = []
    for _ in range(rounds):
        ceiling += rates.steps(1)
        for name, child in children.items():
            took[name].append(results.median(child.steps(3 if "ours" in name else 1)))
    figures: dict[str, Any] = {
        "shape": vars(shape)
        | {"llama_parameters": shape.parameters(), "gpt_parameters": shape.gpt_parameters()},
        "matmul_bf16": results.median(rate["bf16"] for rate in ceiling),
        "matmul_fp32": results.median(rate["fp32"] for rate in ceiling),
        "flops_per_token": call(ours.flops_per_token, folder / "flops.log", shape=shape),
        "rows": {
            name: {
                "step_seconds": took[name],
                "tokens_per_second": shape.batch_tokens / results.median(took[name]),
                "first_step_seconds": first[name],
                "peak_memory": child.peak_memory,
                "ours_times_faster": results.median(
                    b / a for a, b in zip(took[OURS], took[name], strict=True)
                ),
            }
            for name, child in children.items()
        },
    }
    for child in (*children.values(), rates):
        child.stop()
    figures["compile"] = compile_seconds(shape, folder)
    return figures


def compile_seconds(shape: Shape, folder: Path) -> dict[str, float]:
    """Return the seconds that the first step takes beyond a later one: with an empty cache, and in
    a second process with the cache of the first.
    """
    found = {}
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache-compile")}
    for name in ("cold", "cached"):
        child = Worker(
            ours.train,
            folder / f"compile-{name}.log",
            environment,
            shape=shape,
            tokens=folder / "tokens",
            folder=folder / "compile",
        )
        first, *later = child.steps(4)
        found[name] = first - min(later)
        child.stop()
    return found


def show() -> str:
    """The tables of what is stored."""
    parts = []
    for name, run in results.stored("speed").items():
        rows, shape = run["rows"], run["shape"]
        reach = run["flops_per_token"] * rows[OURS]["tokens_per_second"]
        lines = []
        for key, row in rows.items():
            lines.append(
                [
                    ROWS[key],
                    f"{row['tokens_per_second']:,.0f}",
                    "1" if key == OURS else f"{row['ours_times_faster']:.2f}",
                    f"{row['first_step_seconds']:.1f}",
                    f"{row['peak_memory'] / 1e6:,.0f}",
                ]
            )
        head = ("", "tokens/s", "ours is … times faster", "first step, s", "peak memory, MB")
        share = reach / run["matmul_bf16"]
        ratios = [rows[key]["ours_times_faster"] for key in ("trainer", "nanogpt") if key in rows]
        cold, cached = run["compile"]["cold"], run["compile"]["cached"]
        parts.append(
            f"### Tokens per second, {name}\n\n{shape['layers']} layers, {shape['hidden']} wide, block "
            f"{shape['block']}, vocabulary {shape['vocab']:,}, tied embeddings: Llama-style "
            f"{shape['llama_parameters'] / 1e6:.1f}M parameters, nanoGPT's GPT {shape['gpt_parameters'] / 1e6:.1f}M. "
            f"A step is {shape['accumulate']} forward passes of {shape['micro']} sequences everywhere. "
            f"{len(rows[OURS]['step_seconds'])} rounds, medians; ratios are medians of the rounds' ratios. "
            f"{run['machine']['machine']}, torch {run['machine']['torch']}, {run['machine']['date']}.\n\n"
            + results.table(head, lines)
            + f"\n\n- Measured in the same run: bf16 matrix product {run['matmul_bf16'] / 1e9:.0f} GFLOP/s, float32 "
            f"{run['matmul_fp32'] / 1e9:.0f}. Ours: {reach / 1e9:.0f} GFLOP/s, {share:.0%} of the bf16 rate "
            f"(goal {SHARE:.0%}: {results.against(share, SHARE, True)}).\n"
            + (
                f"- Smallest ratio to Trainer and nanoGPT at their defaults: {min(ratios):.2f} "
                f"(goal {RATIO}: {results.against(min(ratios), RATIO, True)}).\n"
                if ratios
                else ""
            )
            + f"- Compiling: {cold:.1f} s with an empty cache (goal {COLD:.0f}: {results.against(cold, COLD, False)}), "
            f"{cached:.1f} s in a second process (goal {CACHED:.0f}: {results.against(cached, CACHED, False)})."
        )
    return "\n\n".join(parts)


def run(folder: Path, nanogpt: Path | None, sizes: list[str], rounds: int) -> None:
    """Measure, store."""
    for name in sizes:
        about = results.machine()
        results.store(
            "speed", name, measure(SPEED[name], folder / name, nanogpt, rounds) | {"machine": about}
        )

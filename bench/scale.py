"""The cost of several processes beside one with the same work, and a forecast for many devices.

    python bench/scale.py measure    # 1, 2 and 4 processes, in turns; about five minutes
    python bench/scale.py paper      # efficiency at 8, 64 and 512 devices (bench/traffic.py)

Contestants take the same global batches of the same model. One process has as many threads as two
processes have together, so the cores are the same; four have one thread each, and share the cores
where there are fewer than four."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ours
import results
from shapes import SPEED, Shape, random_tokens

TINY = Shape("tiny", vocab=512, hidden=64, intermediate=128, layers=2, heads=2, block=32, micro=2)
CONTESTANTS = {
    "one": (1, 2),
    "ddp 2": (2, 1),
    "fsdp 2": (2, 1),
    "ddp 4": (4, 1),
    "fsdp 4": (4, 1),
}  # processes, threads
QUICK = 0.2  # quantile of the steps that counts: what another program slowed down does not


def work(name: str, shape: Shape, tokens: Path, folder: Path, steps: int) -> None:
    """Take steps in one process of a contestant, and let the first process print what they took,
    as JSON.
    """
    import psutil

    from llm.parallel import processes
    from llm.runtime.timing import peak_memory_bytes

    with processes.process_group():
        settings: dict[str, Any] = {"optimizer": "adamw", "compile": False}
        run, batches = ours.trainer(
            shape, tokens, folder, 10 * steps, to_shard=name.startswith("fsdp"), **settings
        )
        run.engine.open_exchange()
        for step in range(2):  # what is allocated once
            run.step(step, batches)
        processes.barrier()
        before, seconds = psutil.net_io_counters(pernic=True)["lo"].bytes_sent, []
        for step in range(2, 2 + steps):
            began = time.perf_counter()
            run.step(step, batches)
            seconds.append(time.perf_counter() - began)
        processes.barrier()
        sent = psutil.net_io_counters(pernic=True)["lo"].bytes_sent - before
        memory = processes.all_gather(peak_memory_bytes())
        if processes.is_main():
            quick = sorted(seconds)[int(QUICK * len(seconds))]
            parameters = run.engine.model.config.parameters()
            embeddings = run.engine.model.model.embed_tokens.weight.numel()  # tied
            rounds = len(
                processes.micro_batches_of_rank(
                    run.engine.batch_size, run.engine.micro, 0, run.engine.world_size
                )
            )
            found = {
                "step_seconds": quick,
                "memory": max(memory),
                "sent": sent / steps / run.engine.world_size,
            }
            found |= {"parameters": parameters, "embeddings": embeddings, "rounds": rounds}
            found["width"] = run.engine.model.compute_dtype.itemsize
            print(json.dumps(found), flush=True)


def contest(name: str, shape: Shape, tokens: Path, steps: int) -> dict[str, Any]:
    """One contestant's turn, in processes of its own."""
    processes, threads = CONTESTANTS[name]
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    env = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": str(ours.ROOT),
        "LLM_DEVICE": "cpu",
    }
    with tempfile.TemporaryDirectory() as folder:
        words = ["work", "--name", name, "--size", shape.name, "--steps", str(steps)]
        place = ["--tokens", str(tokens), "--folder", folder]
        done = subprocess.run(
            [*start, __file__, *words, *place], env=env, capture_output=True, text=True
        )
    if done.returncode:
        sys.exit(done.stderr[-4000:])
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def measure(shape: Shape, rounds: int, steps: int) -> None:
    """Take turns, print the table, and keep the figures in bench/results."""
    from traffic import minimum_bytes, sharded_bytes

    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory() as folder:
        random_tokens(Path(folder), shape.vocab)
        for _ in range(rounds):
            for name, turns in found.items():
                turns.append(contest(name, shape, Path(folder), steps))
    print(
        f"{shape.name}: {found['one'][0]['parameters']:,} parameters, {shape.batch_tokens:,} tokens a step\n"
    )
    print(
        "| | tokens/s | time a step beside one | memory a process | sent a step and process | formula | minimum |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, turns in found.items():
        processes, first = CONTESTANTS[name][0], turns[0]
        ratio = statistics.median(
            t["step_seconds"] / one["step_seconds"]
            for t, one in zip(turns, found["one"], strict=True)
        )
        seconds, sent = (
            statistics.median(t[key] for t in turns) for key in ("step_seconds", "sent")
        )
        least = minimum_bytes(first["parameters"], processes)
        formula = least
        if name.startswith("fsdp"):
            formula = sharded_bytes(
                first["parameters"], first["embeddings"], processes, first["rounds"], first["width"]
            )
        told = (
            [f"{sent / 1e6:.1f} MB", f"{formula / 1e6:.1f} MB", f"{least / 1e6:.1f} MB"]
            if processes > 1
            else [""] * 3
        )
        memory = f"{max(t['memory'] for t in turns) / 1e6:,.0f} MB"
        cells = [name, f"{shape.batch_tokens / seconds:,.0f}", f"{ratio:.2f}", memory, *told]
        print("| " + " | ".join(cells) + " |", flush=True)
    results.store("scale", shape.name, {**results.machine(), "turns": found})


def paper() -> None:
    """Print the table of efficiencies."""
    from traffic import H100, JOBS, efficiency

    print(
        f"H100: {H100.flops / 1e12:.0f} TFLOP/s at {H100.utilisation:.0%}, {H100.inside / 1e9:.0f} GB/s within ",
        end="",
    )
    print(
        f"a machine of {H100.machine}, {H100.network / 1e9:.0f} GB/s between machines, {H100.hop * 1e6:.0f} µs a hop\n"
    )
    print("| model | tokens a step | | 8 | 64 | 512 |\n|---|---|---|---|---|---|")
    for job in JOBS:
        shares = [f"{efficiency(job, count):.0%}" for count in (8, 64, 512)]
        cells = [job.name, f"{job.batch_tokens:,}", "FSDP" if job.sharded else "DDP", *shares]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["measure", "paper", "work"])
    parser.add_argument("--size", choices=["tiny", *SPEED], default="5M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    for name in ("name", "tokens", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = TINY if given.size == "tiny" else SPEED[given.size]
    if given.what == "paper":
        paper()
    elif given.what == "work":
        work(given.name, shape, Path(given.tokens), Path(given.folder), given.steps)
    else:
        measure(shape, given.rounds, given.steps)


if __name__ == "__main__":
    sys.path.insert(0, str(ours.ROOT))
    main()

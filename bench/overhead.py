"""The cost of checkpoints, of tracking and of the loader, each beside the steps that it is part of."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import ours
import results
from shapes import SPEED, Shape, random_tokens
from workers import Gate, call

INTERVAL = 30.0  # seconds between checkpoints: llm.train.trainer.STATE_SECONDS
GOAL = 0.01  # of the run, each
LOADER_GOAL = 0.02  # of step time
STEPS = 1000  # logged steps of the tracking measurement


def checkpoints(
    gate: Gate, shape: Shape, tokens: Path, folder: Path, rounds: int
) -> dict[str, Any]:
    """Steps while no checkpoint is written and while one is, in turns, by this engine's own
    `_save`.
    """
    run, batches = ours.trainer(shape, tokens, folder, 100_000, optimizer="muon")
    for step in range(3):
        run.step(step, batches)
    quiet, busy, copying, writing = [], [], [], []
    step = 3
    for _ in range(rounds):
        for _ in range(4):
            began = time.perf_counter()
            run.step(step, batches)
            quiet.append(time.perf_counter() - began)
            step += 1
        began = time.perf_counter()
        run._save(step)
        copying.append(time.perf_counter() - began)
        done = threading.Event()
        ended: list[float] = []

        def wait(done: threading.Event = done, ended: list[float] = ended) -> None:
            run.state.wait()
            ended.append(time.perf_counter())
            done.set()

        threading.Thread(target=wait, daemon=True).start()
        while not done.is_set():
            first = time.perf_counter()
            run.step(step, batches)
            busy.append(time.perf_counter() - first)
            step += 1
        writing.append(ended[0] - began)
    tensors = {**run.engine.trainable(), **run.engine.optimizers.tensors()}
    slower = results.median(busy) / results.median(quiet) - 1
    lost = results.median(copying) + max(0.0, slower) * results.median(writing)
    return {
        "state_bytes": sum(t.numel() * t.element_size() for t in tensors.values()),
        "step_seconds": results.median(quiet),
        "step_seconds_while_writing": results.median(busy),
        "stall_seconds": results.median(copying),
        "write_seconds": results.median(writing),
        "share": lost / INTERVAL,
    }


def tracking(gate: Gate, folder: Path) -> dict[str, float]:
    """1,000 logged steps into MLflow on sqlite: seconds in the loop's thread, and until all is in
    the store.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.environ |= {"DVC_ROOT": str(folder), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    os.chdir(ours.ROOT)
    from llm import params
    from llm.tracking import run as tracking

    p = params.load()
    began = time.perf_counter()
    in_loop = 0.0
    with tracking.stage(p, "pretrain") as run:
        run.run_id  # noqa: B018  waits for the store, whose tables are made once
        opened = time.perf_counter() - began
        used = time.process_time()
        for step in range(STEPS):
            first = time.perf_counter()
            run.log_metrics(
                {"tokens": step, "loss": 1 / (step + 1), "learning_rate": 0.1, "grad_norm": 1.0},
                step=step,
            )
            in_loop += time.perf_counter() - first
        closing = time.perf_counter()
    return {
        "open_seconds": opened,
        "in_loop_seconds": in_loop,
        "write_seconds": time.perf_counter() - closing,
        "cpu_seconds": time.process_time() - used,
    }


def loader(gate: Gate, shape: Shape, tokens: Path, folder: Path) -> dict[str, float]:
    """Seconds a step takes to find and read its rows, and seconds of the step."""
    from llm.data.order import batch_ids

    run, batches = ours.trainer(shape, tokens, folder, 100_000)
    engine = run.engine
    for step in range(3):
        run.step(step, batches)
    reading, steps = [], []
    for step in range(3, 13):
        began = time.perf_counter()
        ids = batch_ids(engine.seed, step, engine.batch_size, engine.train_set.num_rows)
        engine.train_set.label_counts(ids)
        for first in range(0, len(ids), engine.micro):
            engine.host_tensors(engine.train_set, ids[first : first + engine.micro])
        reading.append(time.perf_counter() - began)
        began = time.perf_counter()
        run.step(step, batches)
        steps.append(time.perf_counter() - began)
    return {"seconds": results.median(reading), "step_seconds": results.median(steps)}


def run(folder: Path, rounds: int) -> None:
    """Measure, store."""
    about = results.machine()
    found: dict[str, Any] = {
        "tracking": call(tracking, folder / "tracking.log", folder=folder / "tracking")
    }
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "cache")}
    for name, shape in SPEED.items():
        tokens = folder / name / "tokens"
        random_tokens(tokens, shape.vocab)
        common: dict[str, Any] = {"shape": shape, "tokens": tokens, "folder": folder / name}
        found[name] = {
            "checkpoints": call(
                checkpoints, folder / f"checkpoints-{name}.log", cache, rounds=rounds, **common
            ),
            "loader": call(loader, folder / f"loader-{name}.log", cache, **common),
        }
        print(f"overhead {name}: {found[name]}", flush=True)
    results.store("overhead", "all", found | {"machine": about})


def show() -> str:
    """The tables of what is stored."""
    stored = results.stored("overhead")
    if not stored:
        return "### Overhead of exactness: not measured"
    found = stored["all"]
    about, track = found["machine"], found["tracking"]
    parts = [
        f"### Overhead of exactness\n\nThe shapes of `speed`, Muon. {about['machine']}, torch {about['torch']}, "
        f"{about['date']}."
    ]
    lines = []
    for name in SPEED:
        c, reads = found[name]["checkpoints"], found[name]["loader"]
        share = reads["seconds"] / reads["step_seconds"]
        lines.append(
            [
                name,
                f"{c['state_bytes'] / 1e6:,.0f}",
                f"{c['stall_seconds'] * 1e3:.0f}",
                f"{c['write_seconds']:.2f}",
                f"{c['step_seconds']:.3f} → {c['step_seconds_while_writing']:.3f}",
                f"{c['share']:.2%} ({results.against(c['share'], GOAL, False)})",
                f"{reads['seconds'] * 1e3:.1f} ms, {share:.2%} ({results.against(share, LOADER_GOAL, False)})",
            ]
        )
    head = (
        "",
        "state, MB",
        "training stalls, ms",
        "written in, s",
        "step alone → while writing, s",
        f"share of a run, one every {INTERVAL:.0f} s (goal {GOAL:.0%})",
        f"loader a step (goal {LOADER_GOAL:.0%})",
    )
    fastest = min(found[name]["checkpoints"]["step_seconds"] for name in SPEED)
    share = (track["in_loop_seconds"] + track["cpu_seconds"]) / (STEPS * fastest)
    parts.append(results.table(head, lines))
    parts.append(
        f"- Tracking (MLflow on sqlite), {STEPS:,} logged steps of 4 figures: "
        f"{track['in_loop_seconds'] * 1e3:.1f} ms in the training thread, {track['cpu_seconds']:.2f} s of processor in "
        f"all, {track['open_seconds']:.1f} s once to make the store. At most {share:.2%} of {STEPS:,} steps of the "
        f"faster shape, as if training stood still meanwhile (goal {GOAL:.0%}: {results.against(share, GOAL, False)})."
    )
    return "\n\n".join(parts)

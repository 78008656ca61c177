"""`python -m llm status`: the stages that run now, and those that failed within the last day."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

from llm.runtime.state_dirs import repository, state_root
from llm.runtime.units import duration, size

SILENT = 60.0  # seconds without an update after which a living process counts as frozen
KEEP = 86400.0  # seconds for which a failed stage is shown


HEAD = (
    "experiment",
    "stage",
    "progress",
    "loss",
    "val",
    "tokens/s",
    "left",
    "memory",
    "pid",
    "health",
)


@dataclass(frozen=True)
class Running:
    """A stage that runs or that failed. Bytes and seconds; None: unknown, or does not apply."""

    experiment: str
    stage: str
    doing: str  # a part of the stage, such as a data set's name
    pid: int
    host: str
    directory: str
    progress: float | None  # share
    done: float | None
    total: float | None
    unit: str
    loss: str | None
    val_loss: str | None
    tokens_per_second: float | None
    seconds_left: float | None
    elapsed: float
    memory: int | None  # of the process and its children
    device_memory: int | None
    health: str
    alive: bool


def read() -> list[Running]:
    """Return all stages with a status file, oldest first; remove files of the long dead."""
    stages = []
    for path in sorted((state_root() / "running").glob("*.json")):
        facts = _facts(path)
        if facts is None:
            continue
        process = _process(facts)
        local = facts["host"] == socket.gethostname()
        if process is None and time.time() - facts["updated"] > KEEP:
            path.unlink(missing_ok=True)
            continue
        stages.append(_running(facts, process, local))
    return sorted(stages, key=lambda item: -item.elapsed)


def _facts(path: Path) -> dict[str, Any] | None:
    """Return a file's content, None if it went away; retry while it is being written."""
    for _ in range(20):
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return facts
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(0.05)
    return None  # its writer was killed while it wrote


def _process(facts: dict[str, Any]) -> psutil.Process | None:
    """Return the process if it runs on this machine and its id was not reused."""
    try:
        process = psutil.Process(facts["pid"])
        same = process.create_time() <= facts["started"] + 1
        same = same and facts["host"] == socket.gethostname()
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _memory(process: psutil.Process) -> int | None:
    """Return the resident memory of a process and its children."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += int(member.memory_info().rss)
    except psutil.Error:  # one ended meanwhile
        return total or None
    return total


def _running(facts: dict[str, Any], process: psutil.Process | None, local: bool) -> Running:
    silent = time.time() - facts["updated"]
    alive = process is not None if local else "ended" not in facts and silent < SILENT
    silence = f"no sign of life for {duration(silent)}"
    if "ended" in facts:
        health = f"ended: {facts['ended']}"
    elif not alive:
        health = "killed: the process is gone" if local else silence
    elif silent > SILENT:
        health = f"frozen: {silence}"
    else:
        health = str(facts["health"])
    done, total = facts.get("done"), facts.get("total")
    return Running(
        experiment=facts["experiment"] or _workspace(facts["directory"]),
        stage=facts["stage"],
        doing=facts.get("doing", ""),
        pid=facts["pid"],
        host=facts["host"],
        directory=facts["directory"],
        progress=done / total if total and done is not None else None,
        done=done,
        total=total,
        unit=facts.get("unit", ""),
        loss=facts.get("loss"),
        val_loss=facts.get("val"),
        tokens_per_second=facts.get("tokens_per_second"),
        seconds_left=facts.get("seconds_left") if alive else None,
        elapsed=facts["updated"] - facts["started"],
        memory=_memory(process) if process else None,
        device_memory=facts.get("peak_device_memory_bytes"),
        health=health,
        alive=alive,
    )


def _workspace(directory: str) -> str:
    return "workspace" if Path(directory) == repository() else Path(directory).name


def forget(experiment: str) -> None:
    """Remove an experiment that was stopped for good from the table, once its stages have ended."""
    end = time.monotonic() + SILENT
    for path in (state_root() / "running").glob("*.json"):
        while (facts := _facts(path)) and facts["experiment"] == experiment:
            if _process(facts) is None or time.monotonic() > end:
                path.unlink(missing_ok=True)
            else:
                time.sleep(0.1)


def validation(experiment: str, stage: str) -> list[tuple[int, float]]:
    """Return (tokens, validation loss) of a running stage since it was started."""
    paths = (state_root() / "running").glob(f"{stage}-*.json")
    # A stopped stage leaves its file, and a later one may have the same name.
    own = [facts for path in paths if (facts := _facts(path)) and facts["experiment"] == experiment]
    last = max(own, key=lambda facts: facts["started"], default={})
    return [(int(tokens), float(loss)) for tokens, loss in last.get("validations", [])]


def waiting() -> list[str]:
    """Return the names of the experiments in DVC's queue; none outside a DVC repository."""
    if not (repository() / ".dvc" / "tmp" / "exps" / "celery").is_dir():
        return []  # without a queue, DVC need not be loaded
    from dvc.repo import Repo

    with Repo(str(repository())) as repo:
        queue = repo.experiments.celery_queue
        return [entry.name or entry.stash_rev[:7] for entry in queue.iter_queued()]


def show_status(as_json: bool = False, every: float | None = None) -> None:
    """Print a table once, or every `every` seconds until Ctrl-C."""
    try:
        while True:
            stages, queued = read(), waiting()
            if as_json:
                values = {"stages": [asdict(item) for item in stages], "queued": queued}
                print(json.dumps(values), flush=True)
            else:
                print("\n".join(lines(stages, queued)), flush=True)
            if every is None:
                return
            time.sleep(every)
    except KeyboardInterrupt:
        return


def lines(stages: list[Running], queued: list[str]) -> list[str]:
    """Return the table's lines."""
    rows = [HEAD]
    for item in stages:
        share = f"{100 * item.progress:.0f}%" if item.progress is not None else ""
        if not share and item.done is not None:
            share = f"{tqdm.format_sizeof(item.done)} {item.unit}"
        memory = [size(item.memory)] if item.memory else []
        memory += [f"{size(item.device_memory)} on the GPU"] if item.device_memory else []
        rate = f"{item.tokens_per_second:,.0f}" if item.tokens_per_second else ""
        left = duration(item.seconds_left) if item.seconds_left is not None else ""
        stage = item.stage if item.doing in ("", item.stage) else f"{item.stage} ({item.doing})"
        pid = str(item.pid) if item.host == socket.gethostname() else f"{item.pid} on {item.host}"
        figures = (share, item.loss or "", item.val_loss or "", rate, left, " + ".join(memory))
        rows.append((item.experiment, stage, *figures, pid, item.health))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if not stages:
        table = ["no stage runs"]
    if any(not item.alive for item in stages):
        table.append(
            "Stages that ended resume from their last state with the same command (docs/RESUME.md)."
        )
    if queued:
        table.append(f"queued: {', '.join(queued)} (`dvc queue start` runs them)")
    return table

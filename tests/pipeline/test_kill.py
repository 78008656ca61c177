"""Kill it anywhere: the outputs of a killed and resumed run are those of a run that was never killed, byte for byte.

`make torture N=200` runs as many kills as one likes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.workspace import ROOT, checkout, environment, run

KILLS = int(os.environ.get("LLM_KILLS", "40"))  # inside the stage; half of them in pretrain, half in finetune
OUTPUTS = {
    "pretrain": ["models/base", "metrics/pretrain.json", "metrics/pretrain_history.csv"],
    "finetune": [
        "models/adapter",
        "models/finetuned",
        "metrics/finetune.json",
        "metrics/finetune_history.csv",
    ],
}


class Victims:
    """The process that forks stages, and the checkout that they run in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        env = {**environment(ROOT), "DVC_ROOT": str(root), "LLM_STATE_SECONDS": "0"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.pipeline.victims"],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, stage: str, kill: dict[str, Any] | None = None) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"stage": stage, "cwd": str(self.root), "kill": kill}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        log = self.root / "child.log"
        assert answer["killed"] or answer["status"] == 0, log.read_text()[-4000:]
        return answer

    def forget(self, stage: str) -> None:
        """As before the first run of the stage: no state, no outputs."""
        shutil.rmtree(self.root / ".state" / stage, ignore_errors=True)
        for output in OUTPUTS[stage]:
            path = self.root / output
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def digests(self, stage: str) -> dict[str, str]:
        paths = [self.root / output for output in OUTPUTS[stage]]
        files = sorted(f for p in paths for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file())
        assert files
        return {str(f.relative_to(self.root)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose data are ready and whose models are not."""
    root = checkout(tmp_path_factory.mktemp("kill") / "checkout", {"finetune": {"lora": {"dropout": 0.1}}})
    run(root, "dvc", "repro", "mix", timeout=300)
    return root


@pytest.fixture(scope="module")
def victims(prepared: Path) -> Iterator[Victims]:
    found = Victims(prepared)
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    found.process.wait(timeout=30)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_stage_killed_anywhere_ends_with_the_same_bytes(stage: str, victims: Victims) -> None:
    if stage == "finetune" and not (victims.root / "models/base").exists():
        victims.run("pretrain")
    victims.forget(stage)
    whole = victims.run(stage)
    expected, points = victims.digests(stage), whole["calls"]
    assert points > 40
    choose = random.Random(stage)
    kills = KILLS // 2
    by_call = [{"call": round(1 + i * (points - 1) / (kills - 1)), "after": bool(i % 2)} for i in range(kills)]
    dead = 0
    for i, kill in enumerate(by_call):
        victims.forget(stage)
        if i % 4 == 3:  # also at a moment of its own, inside of what is not a call
            kill = {"seconds": choose.uniform(0.3, 0.9) * whole["seconds"]}
        dead += victims.run(stage, kill)["killed"]
        if i % 3 == 0:  # and once more on the way
            dead += victims.run(stage, {"call": choose.randrange(1, points), "after": False})["killed"]
        victims.run(stage)
        assert victims.digests(stage) == expected, f"{kill} left a trace"
    assert dead >= kills * 0.9


def dvc(root: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["dvc", *command],
        cwd=root,
        env={**environment(root), "LLM_STATE_SECONDS": "0"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def trainers(root: Path) -> list[int]:
    """Stage processes that run in this checkout or in a temporary one inside it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            place = os.readlink(entry / "cwd")
        except OSError:  # it ended, or is another user's
            continue
        if any(word.startswith("stages.") for word in command) and place.startswith(str(root)):
            found.append(int(entry.name))
    return found


def wait_for_training(root: Path, stage: str, timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if list((root / ".state" / stage).glob("*/step-????????")):
            return
        time.sleep(0.02)
    raise AssertionError(f"{stage} did not start")


def output_hashes(root: Path) -> dict[str, str]:
    lock = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in ("pretrain", "finetune") for out in lock[stage]["outs"]}


LONGER = {"pretrain": {"tokens": 300_000, "eval_every": 50}}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dvc_killed_with_and_without_its_stage_leaves_no_orphan_and_no_trace(prepared: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        root = tmp_path / name
        shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("models", ".state", "mlflow.db*", "mlartifacts"))
        params = yaml.safe_load((root / "params.yaml").read_text())
        params["pretrain"] |= LONGER["pretrain"]
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
        return root

    quiet, killed = copy("quiet"), copy("killed")
    run(quiet, "dvc", "repro", "finetune", timeout=300)
    for alone in (False, True, False):
        process = dvc(killed, "repro", "finetune")
        before = set((killed / ".state" / "pretrain").glob("*/step-*"))
        deadline = time.monotonic() + 60
        while set((killed / ".state" / "pretrain").glob("*/step-*")) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(random.Random(alone).uniform(0.1, 0.6))
        if alone:
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    # The orphan of a killed dvc ends by itself, or is waited for by its successor.
    run(killed, "dvc", "repro", "finetune", timeout=300)
    assert trainers(killed) == []
    assert output_hashes(killed) == output_hashes(quiet)

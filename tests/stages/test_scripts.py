"""The scripts of docs/ train one model on two machines; here both are this one, and the commands
stand-ins.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm.data.push_shards import push
from tests.conftest import ROOT
from tests.pipeline.workspace import environment
from tests.stages.test_processes import prepared  # noqa: F401  (a fixture)

# As Slurm's: the command once for each node, with its number; fails where one of them does.
SRUN = """#!/bin/bash
for node in $(seq 0 $((SLURM_NNODES - 1))); do
  SLURM_NODEID=$node SLURM_PROCID=$node SLURM_LOCALID=0 "$@" & started+=($!)
done
for task in "${started[@]}"; do wait "$task" || exit 1; done
"""
SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames $SLURM_JOB_NODELIST" ] && printf 'localhost\\nother\\n'
"""
DVC = """#!/bin/bash
echo "$@" >> "$DVC_ROOT/dvc.txt"
"""


def checkout(prepared: Path, root: Path) -> Path:  # noqa: F811
    """A checkout with tokens, whose environment has the commands of a cluster."""
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("models", ".state"))
    programs = root / ".venv/bin"
    programs.mkdir(parents=True)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("dvc", DVC)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    (programs / "torchrun").symlink_to(Path(sys.executable).parent / "torchrun")
    return root


def variables(root: Path, **more: str) -> dict[str, str]:
    """LLM_PROCESSES says what a stage starts that nobody else has started; torchrun has."""
    return (
        environment(root, fresh=True)
        | {"PYTHONPATH": str(ROOT), "LLM_DEVICE": "cpu", "LLM_PROCESSES": "4"}
        | more
    )


def check(root: Path, printed: str, commands: list[str]) -> None:
    assert "2 processes ·" in printed
    assert printed.count("validation loss") == 1
    assert (root / "models/base/model.safetensors").exists()
    assert json.loads((root / "metrics/timing/pretrain.json").read_text())["processes"] == 2
    assert (root / "dvc.txt").read_text().splitlines() == commands


@pytest.fixture(scope="module")
def under_slurm(prepared: Path) -> Path:  # noqa: F811
    """A checkout in which docs/slurm.sh has been run."""
    root = checkout(prepared, prepared.with_name("slurm"))
    slurm = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_NNODES": "2",
        "PROCESSES": "1",
    }
    script = ["bash", str(ROOT / "docs/slurm.sh")]
    done = subprocess.run(
        script, cwd=root, env=variables(root, **slurm), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (root / "printed.txt").write_text(done.stdout)
    return root


def test_the_slurm_script_trains_one_model_on_two_machines(under_slurm: Path) -> None:
    check(
        under_slurm,
        (under_slurm / "printed.txt").read_text(),
        ["repro tokenize", "commit --force pretrain"],
    )


@pytest.mark.slow
def test_the_skypilot_task_trains_the_same_model_on_two_machines_with_tokens_from_afar(
    under_slurm: Path,
    prepared: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """Slow: its siblings are the Slurm script above, and tests/data/test_remote_shards.py."""
    root, url = checkout(prepared, tmp_path / "sky"), f"file://{tmp_path}/remote"
    push(root / "data/tokens", url, 4096)
    for shard in root.glob("data/tokens/*-?????.npy"):
        shard.unlink()
    task = yaml.safe_load((ROOT / "docs/sky.yaml").read_text(encoding="utf-8"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    sky = {
        "SKYPILOT_NODE_IPS": "localhost\nother",
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "PORT": port,
    }
    sky |= {"SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_TASK_ID": "one", "CHECKOUT": str(root)}
    sky |= {"LLM_TOKENS_URL": url, "LLM_TOKENS_CACHE": str(tmp_path / "cache")}
    machines = [
        subprocess.Popen(
            ["bash", "-euc", task["run"]],
            env=variables(root, SKYPILOT_NODE_RANK=str(number), **sky),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    printed = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], printed
    check(root, "".join(printed), ["commit --force pretrain"])
    assert list((tmp_path / "cache").glob("*/*"))
    model = "models/base/model.safetensors"
    assert (root / model).read_bytes() == (under_slurm / model).read_bytes()

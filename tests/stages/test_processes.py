"""A stage in two processes, its own or torchrun's, writes what it writes alone: the same model
within rounding.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from llm.errors import UserError
from llm.parallel import launch
from stages import finetune, pretrain, tokenize
from tests.pipeline.workspace import ROOT, TINY, environment, run
from tests.stages.test_tokenize import documents, workspace

TRAINING = {key: TINY["pretrain"][key] for key in ("precision", "compile")} | {
    "optimizer": "adamw",
    "eval_every": 4,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokens and mixed examples."""
    root = workspace(
        tmp_path_factory.mktemp("torchrun") / "alone",
        documents(),
        model=TINY["model"] | {"max_position_embeddings": 64},
        pretrain=TRAINING | {"tokens": 64 * 4 * 9, "batch_tokens": 256, "eval_tokens": 500},
        finetune=TRAINING
        | {"epochs": 3, "sequence_length": 64, "batch_tokens": 320, "eval_tokens": 500}
        | {"lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "down_proj"]}},
        mix={"max_tokens": 48},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        tokenize.main()
    for side, count in (("train", 90), ("val", 12)):
        columns = {
            "id": [f"{side}-{i}" for i in range(count)],
            "task": ["classification" if i % 2 else "summarization" for i in range(count)],
            "prompt": [f"value of axis {i}" for i in range(count)],
            "response": [f"index {i % 7} number" for i in range(count)],
        }
        (root / "data/mix").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), root / "data/mix" / f"{side}.parquet")
    return root


def command(root: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    return run(root, *words, PYTHONPATH=str(ROOT), DVC_ROOT=str(root), LLM_DEVICE="cpu", **env)


@pytest.fixture(scope="module")
def sharded(prepared: Path) -> Path:
    """One more, for two processes that share the weights."""
    return Path(
        shutil.copytree(
            prepared,
            prepared.with_name("sharded"),
            ignore=shutil.ignore_patterns("models", ".state"),
        )
    )


@pytest.fixture(scope="module")
def both(prepared: Path) -> Path:
    """Another folder with the same data, for two processes."""
    return Path(
        shutil.copytree(
            prepared, prepared.with_name("both"), ignore=shutil.ignore_patterns("models", ".state")
        )
    )


@pytest.fixture(scope="module")
def alone(prepared: Path) -> Path:
    """Return the folder after one process has trained in it: this one, which has torch already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(prepared)
        for name, value in (("DVC_ROOT", str(prepared)), ("LLM_DEVICE", "cpu")):
            patch.setenv(name, value)
        pretrain.main()
        finetune.main()
    return prepared


# Slow: tests/train/test_fsdp.py covers shards, and "ddp" the processes that a stage starts.
SHARDINGS = ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)]


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_two_processes_write_what_one_writes(
    alone: Path, both: Path, sharded: Path, sharding: str
) -> None:
    prepared, both = alone, both if sharding == "ddp" else sharded
    for stage in ("pretrain", "finetune"):
        env = {"LLM_PROCESSES": "2"} | ({"LLM_SHARDING": sharding} if sharding == "fsdp" else {})
        printed = command(both, "python", "-m", f"stages.{stage}", **env).stdout
        assert printed.count("validation loss") == 1  # though two processes know it
        assert f"2 processes{', sharded' if sharding == 'fsdp' else ''} ·" in printed
        one, two = (
            json.loads((root / f"metrics/{stage}.json").read_text()) for root in (prepared, both)
        )
        assert one.keys() == two.keys()
        assert two["val_loss"] == pytest.approx(one["val_loss"], abs=5e-4)  # nats
        histories = [
            (root / f"metrics/{stage}_history.csv").read_text().splitlines()
            for root in (prepared, both)
        ]
        assert len(histories[0]) == len(histories[1]) > 5
        timing = json.loads((both / f"metrics/timing/{stage}.json").read_text())
        assert timing["processes"] == 2
        assert timing["sharded"] is (sharding == "fsdp")
        assert timing["identical_bytes"].startswith("yes")
    files = [
        sorted(p.relative_to(root) for p in (root / "models").rglob("*.*"))
        for root in (prepared, both)
    ]
    assert files[0] == files[1]
    one, two = (load_file(root / "models/base/model.safetensors") for root in (prepared, both))
    assert max(np.abs(one[key] - two[key]).max() for key in one) < 1e-3


@pytest.mark.slow
def test_all_weights_are_finetuned_in_shards_as_in_one_process(alone: Path, sharded: Path) -> None:
    """Slow: its sibling is tests/train/test_fsdp.py, which shards the same optimizer."""
    losses = []
    for root, env in (
        (alone, {"LLM_PROCESSES": "1"}),
        (sharded, {"LLM_PROCESSES": "2", "LLM_SHARDING": "fsdp"}),
    ):
        copied = Path(
            shutil.copytree(
                root, root.with_name(f"{root.name}-full"), ignore=shutil.ignore_patterns(".state")
            )
        )
        settings = yaml.safe_load((copied / "params.yaml").read_text())
        settings["finetune"] |= {"method": "full", "optimizer": "muon"}
        (copied / "params.yaml").write_text(yaml.safe_dump(settings))
        shutil.copytree(alone / "models/base", copied / "models/base", dirs_exist_ok=True)
        command(copied, "python", "-m", "stages.finetune", **env)
        losses.append(
            json.loads((copied / "metrics/finetune.json").read_text())["val_loss_by_task"]
        )
        assert (
            load_file(copied / "models/finetuned/model.safetensors").keys()
            == load_file(copied / "models/base/model.safetensors").keys()
        )
    assert losses[1] == pytest.approx(losses[0], abs=0.02)  # nats; Muon rounds to bfloat16


@pytest.mark.parametrize("sharding", SHARDINGS)
def test_a_process_that_is_killed_is_started_again_from_the_last_state(
    both: Path, sharded: Path, tmp_path: Path, sharding: str
) -> None:
    root = tmp_path / "killed"
    both = both if sharding == "ddp" else sharded
    shutil.copytree(both, root, ignore=shutil.ignore_patterns("models", ".state"))
    env = {**environment(root), "PYTHONPATH": str(ROOT), "DVC_ROOT": str(root), "LLM_DEVICE": "cpu"}
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.pretrain"],
        cwd=root,
        env={**env, "LLM_PROCESSES": "2", "LLM_STATE_SECONDS": "0", "LLM_SHARDING": sharding},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list(root.glob(".state/pretrain/*/step-*[0-9]")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(max(child.pid for child in psutil.Process(process.pid).children()), signal.SIGKILL)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 0, printed
    assert "was ended by SIGKILL; all start again from the last state (1 of 3)" in printed
    assert "pretrain: resumes after step" in printed
    bytes_of = [(path / "models/base/model.safetensors").read_bytes() for path in (both, root)]
    assert bytes_of[0] == bytes_of[1]


def test_an_error_is_told_once_and_nothing_starts_again(prepared: Path, tmp_path: Path) -> None:
    root = tmp_path / "broken"
    shutil.copytree(prepared, root, ignore=shutil.ignore_patterns("models", ".state"))
    (root / "data/tokens/meta.json").write_text("{}")
    env = {
        "PYTHONPATH": str(ROOT),
        "DVC_ROOT": str(root),
        "LLM_DEVICE": "cpu",
        "LLM_PROCESSES": "2",
    }
    done = run(root, "python", "-m", "stages.pretrain", check=False, **env)
    assert done.returncode == 1
    assert "data/tokens/meta.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert "start again" not in done.stderr
    assert done.stderr.count("error:") == 1


@pytest.mark.parametrize("given", ["0", "two", "-1"])
def test_an_impossible_number_of_processes_is_refused(
    given: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_PROCESSES", given)
    with pytest.raises(UserError, match="LLM_PROCESSES"):
        launch.process_count()


def test_one_device_for_two_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_PROCESSES", "2")
    monkeypatch.setenv("LLM_DEVICE", "cuda:0")
    with pytest.raises(
        UserError, match="LLM_PROCESSES=2 needs as many devices, and LLM_DEVICE=cuda:0 names one"
    ):
        launch.process_count()
    monkeypatch.setenv("LLM_DEVICE", "cpu")
    assert launch.process_count() == 2


def test_there_is_a_process_for_each_card_unless_a_device_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("LLM_PROCESSES", "LLM_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert launch.process_count() == 8
    monkeypatch.setenv("LLM_DEVICE", "cuda:3")
    assert launch.process_count() == 1

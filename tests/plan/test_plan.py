"""The plan says what a run takes before it takes it, and refuses what cannot fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from llm import params, plan
from llm.errors import UserError
from llm.model.config import Config
from llm.model.transformer import Transformer
from llm.parallel import hardware
from llm.plan.show import show_plan
from llm.runtime import units
from llm.runtime.io import write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture
def p(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> params.Params:
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "matmul_flops_per_second", lambda *_: 4e11)
    return params.load()


def test_the_numbers_are_those_of_the_run(p: params.Params) -> None:
    pretrain = plan.pretrain_plan(p)
    config = Config(vocab_size=4096, **p.model.dimensions())
    assert pretrain.parameters == sum(x.numel() for x in Transformer(config).parameters())
    assert pretrain.embedding_parameters == 2 * 4096 * 256
    assert pretrain.tokens == pretrain.steps * 4096 >= 2_600_000
    assert pretrain.epochs is None
    assert "not known before tokenize" in pretrain.data
    assert 6 * pretrain.optimal_parameters * pretrain.optimal_tokens == pytest.approx(
        pretrain.flops, rel=1e-4
    )
    assert pretrain.optimal_tokens == pytest.approx(20 * pretrain.optimal_parameters, rel=1e-4)
    finetune = plan.finetune_plan(p)
    assert finetune.trained_parameters < pretrain.parameters < finetune.parameters
    assert "not known before mix" in finetune.data
    assert plan.finetune_plan(p, steps=10).steps == 10


def test_epochs_are_told_once_the_tokens_are_there(p: params.Params) -> None:
    write_json("data/tokens/meta.json", {"train": {"tokens": 1_300_000}})
    few = plan.pretrain_plan(p)
    assert few.epochs == pytest.approx(2.0, rel=0.01)
    assert "repeat" not in few.data
    write_json("data/tokens/meta.json", {"train": {"tokens": 100_000}})
    assert "more than 4 repeat more than they teach" in plan.pretrain_plan(p).data


def test_a_measured_rate_of_this_device_replaces_the_typical_one(p: params.Params) -> None:
    typical = plan.pretrain_plan(p)
    assert "typical" in typical.utilisation_from
    timing = {"device": typical.device, "compiled": typical.compiled, "mfu": 0.25}
    write_json("metrics/timing/pretrain.json", timing)
    measured = plan.pretrain_plan(p)
    assert (measured.utilisation, "metrics/timing/pretrain.json" in measured.utilisation_from) == (
        0.25,
        True,
    )
    assert measured.seconds > typical.seconds
    write_json("metrics/timing/pretrain.json", {**timing, "device": "another"})
    assert plan.pretrain_plan(p).seconds == pytest.approx(typical.seconds)


def test_a_run_that_cannot_fit_the_memory_is_refused(
    p: params.Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.before_training(plan.pretrain_plan(p), tmp_path)
    monkeypatch.setattr(hardware, "total_memory", lambda *_: 10**8)
    with pytest.raises(
        UserError, match=r"run needs about .* of memory .* has 100 MB.*model\.hidden_size"
    ):
        plan.before_training(plan.pretrain_plan(p), tmp_path)


def test_processes_of_one_machine_share_its_memory(
    p: params.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = plan.pretrain_plan(p)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    four = plan.pretrain_plan(p)
    assert four.needed == 4 * one.needed
    assert "in 4 processes" in dict(four.rows())["memory"]


def test_gradient_checkpointing_takes_less_memory_and_more_time(p: params.Params) -> None:
    usual = plan.pretrain_plan(p)
    again = plan.pretrain_plan(
        p.model_copy(
            update={"pretrain": p.pretrain.model_copy(update={"grad_checkpointing": True})}
        )
    )
    assert again.memory.activations < usual.memory.activations
    assert again.seconds > usual.seconds


def test_a_run_that_cannot_fit_the_disk_is_refused(
    p: params.Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, need = shutil.disk_usage(tmp_path), plan.pretrain_plan(p).disk
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=need - 1000))
    full = plan.pretrain_plan(p)
    with pytest.raises(UserError, match=r"need .* of disk.*state --prune"):
        plan.before_training(full, tmp_path)
    (tmp_path / "step-00000001").mkdir()
    (tmp_path / "step-00000001" / "tensors.safetensors").write_bytes(bytes(2000))
    plan.before_training(
        full, tmp_path
    )  # what a resumed run has on disk already is not needed again


def test_the_command_prints_both_stages_aligned_and_as_json(
    p: params.Params, capsys: pytest.CaptureFixture
) -> None:
    show_plan()
    text = capsys.readouterr().out
    for expected in (
        "pretrain",
        "finetune",
        "compute-optimal",
        "micro-batches of",
        "activations",
        "not known before",
    ):
        assert expected in text
    assert max(map(len, text.splitlines())) < 200
    show_plan(as_json=True)
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert values["pretrain"]["memory"]["peak"] < values["pretrain"]["memory_total"]
    assert values["finetune"]["steps"] > 0


def test_the_memory_of_a_container_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(hardware, "CONTAINER_LIMITS", (limit, tmp_path / "none"))
    machine = hardware.total_memory(torch.device("cpu"))
    for text, expected in (("max\n", machine), ("1000000\n", 1_000_000)):
        limit.write_text(text)
        assert hardware.total_memory(torch.device("cpu")) == expected


@pytest.mark.parametrize(
    ("number", "shown"),
    [(999, "1 kB"), (2.5e6, "2.5 MB"), (1.44e9, "1.4 GB"), (24e9, "24 GB"), (3e12, "3.0 TB")],
)
def test_sizes_read_well(number: float, shown: str) -> None:
    assert units.size(number) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(45, "45 s"), (192, "3.2 min"), (5.1 * 3600, "5.1 h"), (12 * 86400, "12.0 days")],
)
def test_durations_read_well(seconds: float, shown: str) -> None:
    assert units.duration(seconds) == shown

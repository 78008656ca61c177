"""`python -m llm state`: what is on disk, damaged or not, and what may go."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from llm.train.checkpoint.local import State
from llm.train.checkpoint.prune import list_states, prune_states


def saved(stage: str, seed: int, step: int, age: float) -> Path:
    """A state that was last written `age` seconds ago."""
    state = State(stage, {"seed": seed})
    with state.locked():
        state.save(step, {"a": torch.zeros(250_000)}, {"step": step}, wait=True)
    written = state.directory.stat().st_mtime - age
    os.utime(state.directory, (written, written))
    return state.directory


def test_states_are_listed_with_stage_step_and_size_newest_first(
    capsys: pytest.CaptureFixture,
) -> None:
    old, new = saved("pretrain", 1, 7, age=100), saved("pretrain", 2, 1200, age=0)
    other = saved("finetune", 1, 3, age=50)
    capsys.readouterr()
    list_states()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[:3]] == [
        ["finetune", other.name, "step", "3"],
        ["pretrain", new.name, "step", "1,200"],
        ["pretrain", old.name, "step", "7"],
    ]
    assert all(" 1.0 MB" in line for line in lines[:3])
    assert lines[3].startswith("3 states")


def test_pruning_keeps_the_newest_of_each_stage(capsys: pytest.CaptureFixture) -> None:
    old, older, new = (
        saved("pretrain", seed, 1, age) for seed, age in ((1, 100), (2, 200), (3, 0))
    )
    other = saved("finetune", 1, 1, age=1000)
    prune_states()
    assert [path.exists() for path in (old, older, new, other)] == [False, False, True, True]
    assert "freed 2.0 MB; kept the newest state of finetune, pretrain" in capsys.readouterr().out


def test_a_state_in_use_is_not_pruned(capsys: pytest.CaptureFixture) -> None:
    saved("pretrain", 1, 1, age=0)
    old = saved("pretrain", 2, 1, age=100)
    with State("pretrain", {"seed": 2}).locked():
        os.utime(old, (1, 1))
        list_states()
        prune_states()
        assert old.exists()
    assert capsys.readouterr().out.count("in use") == 1
    prune_states()
    assert not old.exists()


def test_a_damaged_or_half_deleted_state_is_listed_and_pruned(
    capsys: pytest.CaptureFixture,
) -> None:
    damaged, halved = saved("pretrain", 1, 5, age=100), saved("pretrain", 2, 6, age=200)
    saved("pretrain", 3, 7, age=0)
    (damaged / "step-00000005" / "meta.json").write_text("{")
    for name in ("inputs.json", "latest"):
        (halved / name).unlink()
    os.utime(damaged, (2, 2))
    os.utime(halved, (1, 1))
    capsys.readouterr()
    list_states()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[3] for line in lines[:3]] == ["7", "5", "6"]
    prune_states()
    assert not damaged.exists()
    assert not halved.exists()


def test_without_states_there_is_nothing_to_do(capsys: pytest.CaptureFixture) -> None:
    list_states()
    prune_states()
    out = capsys.readouterr().out
    assert "0 states" in out
    assert "freed 0.0 MB; kept the newest state of no stage" in out

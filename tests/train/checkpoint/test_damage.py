"""States that another version, a bad disk or a hasty `rm` left: named, passed over, never silently
wrong.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.runtime import provenance
from llm.train.checkpoint.local import State, code_version
from tests.conftest import ROOT

TENSORS = {"weight": torch.linspace(-1, 1, 300), "moment": torch.ones(7, 3)}


def saved(steps: int = 3, **inputs: Any) -> State:
    state = State("pretrain", inputs or {"seed": 1})
    with state.locked():
        for step in range(1, steps + 1):
            meta = {
                "step": step,
                "micro_batch": 8,
                "history": [{"step": step, "loss": 3.1 / step, "val_loss": None}],
            }
            state.save(
                step, {name: value * step for name, value in TENSORS.items()}, meta, wait=True
            )
    return state


def newest(state: State) -> Path:
    return max(state.directory.glob("step-????????"))


@pytest.mark.parametrize("name", ["meta.json", "tensors.safetensors"])
def test_a_flipped_bit_anywhere_is_noticed(name: str, capfd: pytest.CaptureFixture) -> None:
    state = saved()
    path = newest(state) / name
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        loaded = state.load()
        assert loaded is not None
        assert loaded[1]["step"] == 2, f"byte {place} of {name}"
        assert torch.equal(loaded[0]["weight"], TENSORS["weight"] * 2)
        assert "step-00000003 is unusable" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["meta.json", "tensors.safetensors"])
def test_a_file_cut_anywhere_is_noticed(name: str, capfd: pytest.CaptureFixture) -> None:
    state = saved()
    path = newest(state) / name
    whole = path.read_bytes()
    for length in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        loaded = state.load()
        assert loaded is not None
        assert loaded[1]["step"] == 2
        assert "step-00000003 is unusable" in capfd.readouterr().err


def remove_newest(state: State) -> None:
    shutil.rmtree(newest(state))


def empty_newest(state: State) -> None:
    for path in newest(state).iterdir():
        path.unlink()


def pointer_of_noise(state: State) -> None:
    (state.directory / "latest").write_bytes(b"\xff\xfe\x00step")


def meta_that_is_no_object(state: State) -> None:
    (newest(state) / "meta.json").write_text("[1, 2]")


def meta_of_another_version(state: State) -> None:
    meta = json.loads((newest(state) / "meta.json").read_text())
    del meta["meta_sha256"]
    (newest(state) / "meta.json").write_text(json.dumps(meta))


def a_file_in_its_place(state: State) -> None:
    path = newest(state)
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize(
    ("harm", "step", "named"),
    [
        (remove_newest, 2, "step-00000003"),
        (empty_newest, 2, "step-00000003"),
        (a_file_in_its_place, 2, "step-00000003"),
        (meta_that_is_no_object, 2, "step-00000003"),
        (meta_of_another_version, 2, "step-00000003"),
        (pointer_of_noise, 3, "latest"),
    ],
)
def test_half_a_state_is_named_and_what_is_left_of_it_is_used(
    harm: Callable[[State], None], step: int, named: str, capfd: pytest.CaptureFixture
) -> None:
    state = saved()
    harm(state)
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == step
    assert torch.equal(loaded[0]["weight"], TENSORS["weight"] * step)
    assert named in capfd.readouterr().err


def test_with_no_checkpoint_left_the_message_says_that_training_starts_afresh(
    capfd: pytest.CaptureFixture,
) -> None:
    state = saved()
    for path in state.directory.glob("step-*"):
        shutil.rmtree(path)
    assert state.load() is None
    assert "starts afresh" in capfd.readouterr().err


def test_a_first_run_has_nothing_to_say(capfd: pytest.CaptureFixture) -> None:
    state = State("pretrain", {"seed": "first"})
    with state.locked():
        assert state.load() is None
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_broken_checkpoints_that_were_passed_over_do_not_crowd_out_good_ones() -> None:
    state = saved(9)
    (newest(state) / "meta.json").unlink()
    with state.locked():
        loaded = state.load()
        assert loaded is not None
        assert loaded[1]["step"] == 8
        for step in (
            81,
            82,
        ):  # as if 8 had been 80, to come before the broken one as well as after it
            state.save(step - 73, TENSORS, {"step": step - 73}, wait=True)
    assert [p.name for p in sorted(state.directory.glob("step-*"))] == [
        "step-00000008",
        "step-00000009",
    ]
    (newest(state) / "meta.json").unlink()
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == 8


BASE = {
    "seed": 1,
    "pretrain": {"learning_rate": 0.1, "betas": [0.9, 0.95]},
    "data/tokens": "a" * 64,
    "data/mix": {"train": "b" * 64, "val": "c" * 64},
    "code": "d" * 64,
    "torch": "2.11.0",
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 2}, "seed (1 → 2)"),
        (
            {"pretrain": {"learning_rate": 0.1, "betas": [0.9, 0.99]}},
            "pretrain.betas ([0.9, 0.95] → [0.9, 0.99])",
        ),
        ({"data/tokens": "e" * 64}, "data/tokens"),
        ({"data/mix": {"train": "b" * 64, "val": "e" * 64}}, "data/mix.val"),
        ({"code": "e" * 64}, "code"),
        ({"torch": "2.13.0"}, "torch (2.11.0 → 2.13.0)"),
        ({"seed": 3, "torch": "2.13.0"}, "seed (1 → 3), torch (2.11.0 → 2.13.0)"),
    ],
)
def test_what_changed_is_named_and_nothing_else(
    change: dict[str, Any], said: str, capfd: pytest.CaptureFixture
) -> None:
    old = saved(**BASE)
    capfd.readouterr()
    new = State("pretrain", BASE | change)
    with new.locked():
        assert new.load() is None
    assert (
        f"pretrain: starts afresh, since {said} changed; the old state stays"
        in capfd.readouterr().out
    )
    assert newest(old).is_dir()


def test_an_older_states_unreadable_inputs_are_named(capfd: pytest.CaptureFixture) -> None:
    old = saved()
    (old.directory / "inputs.json").write_text('{"seed": ')
    with State("pretrain", {"seed": 2}).locked():
        pass
    assert str(old.directory / "inputs.json") in capfd.readouterr().err


def test_other_code_and_another_torch_are_other_versions(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here = code_version()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert code_version() == {**here, "torch": "2.99.0"}
    package = tmp_path / "llm"
    shutil.copytree(ROOT / "llm", package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "__file__", str(package / "runtime" / "provenance.py"))
    provenance.code_digest.cache_clear()
    assert code_version()["code"] == here["code"]
    with (package / "model" / "attention.py").open("a") as file:
        file.write("\n")
    provenance.code_digest.cache_clear()
    assert code_version()["code"] != here["code"]
    provenance.code_digest.cache_clear()

"""The state on disk: whole or not at all, verified, and never of another run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from llm.train.checkpoint import local
from llm.train.checkpoint.local import State
from tests import warm

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.zeros(5)}


def saved(steps: int = 3, inputs: dict[str, object] | None = None) -> State:
    state = State("pretrain", inputs or {"seed": 1})
    with state.locked():
        for step in range(1, steps + 1):
            state.save(
                step,
                {k: v + step for k, v in TENSORS.items()},
                {"step": step, "history": []},
                wait=True,
            )
    return state


def test_a_checkpoint_comes_back_exactly() -> None:
    loaded = saved().load()
    assert loaded is not None
    tensors, meta = loaded
    assert meta["step"] == 3
    assert all(torch.equal(tensors[k], v + 3) for k, v in TENSORS.items())


def test_two_checkpoints_are_kept() -> None:
    assert [p.name for p in sorted(saved(5).directory.glob("step-*"))] == [
        "step-00000004",
        "step-00000005",
    ]


def test_a_twin_whose_folder_was_deleted_while_it_waited_makes_it_anew(
    capsys: pytest.CaptureFixture,
) -> None:
    first, second = State("pretrain", {"seed": 3}), State("pretrain", {"seed": 3})

    def work() -> None:
        with second.locked():
            second.save(1, TENSORS, {"step": 1}, wait=True)

    twin = threading.Thread(target=work)
    with first.locked():
        twin.start()
        said = ""
        while "waiting for it" not in said:
            said += capsys.readouterr().out
            time.sleep(0.01)
        shutil.rmtree(first.directory)
    twin.join()
    loaded = second.load()
    assert loaded is not None
    assert loaded[1]["step"] == 1


def test_training_may_change_tensors_while_they_are_written() -> None:
    state = State("pretrain", {"seed": 2})
    tensor = torch.ones(1000, 1000)
    with state.locked():
        state.save(1, {"a": tensor}, {"step": 1})
        tensor.fill_(7)
        state.wait()
    loaded = state.load()
    assert loaded is not None
    assert float(loaded[0]["a"].max()) == 1.0


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no tensors", "no meta", "bad meta"])
def test_a_broken_checkpoint_is_named_and_the_one_before_is_used(
    damage: str, capfd: pytest.CaptureFixture
) -> None:
    state = saved()
    newest = state.directory / "step-00000003"
    tensors = newest / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    if damage == "flipped":
        data[-3] ^= 1
        tensors.write_bytes(data)
    elif damage == "truncated":
        tensors.write_bytes(data[:-10])
    elif damage == "no tensors":
        tensors.unlink()
    elif damage == "no meta":
        (newest / "meta.json").unlink()
    else:
        (newest / "meta.json").write_text("{")
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == 2
    assert "step-00000003" in capfd.readouterr().err


def test_with_every_checkpoint_broken_the_run_starts_afresh() -> None:
    state = saved()
    for path in state.directory.glob("step-*/tensors.safetensors"):
        path.write_bytes(b"")
    assert state.load() is None


def test_another_param_is_another_state_and_the_change_is_named(
    capfd: pytest.CaptureFixture,
) -> None:
    first = saved(inputs={"pretrain": {"learning_rate": 0.1}, "torch": "2"})
    other = State("pretrain", {"pretrain": {"learning_rate": 0.2}, "torch": "2"})
    with other.locked():
        assert other.load() is None
    out = capfd.readouterr().out
    assert "pretrain.learning_rate (0.1 → 0.2)" in out
    assert first.load() is not None


def test_a_full_disk_is_told_once_and_does_not_stop_training(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    state = saved()

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(local, "_sync", full)
    for step in (4, 5):
        state.save(step, TENSORS, {"step": step}, wait=True)
    monkeypatch.undo()
    assert capfd.readouterr().err.count("No space left") == 1
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == 3
    assert not list(state.directory.glob("*.tmp"))


def test_a_twin_waits_for_the_lock(tmp_path: Path) -> None:
    code = (
        "import time, sys; from llm.train.checkpoint.local import State; s = State('pretrain', {'seed': 1})\n"
        "with s.locked():\n"
        "    print('in', time.monotonic(), flush=True); time.sleep(1.0); print('out', time.monotonic(), flush=True)"
    )
    env = {**os.environ, "DVC_ROOT": str(tmp_path)}
    twins = []
    for _ in range(2):
        twins.append(
            subprocess.Popen(
                [warm.python(), "-c", code], env=env, stdout=subprocess.PIPE, text=True
            )
        )
        time.sleep(0.1)
    spans = []
    for twin in twins:
        out, _ = twin.communicate(timeout=240)
        times = [
            float(line.split()[1]) for line in out.splitlines() if line.startswith(("in", "out"))
        ]
        spans.append(times)
    spans.sort()
    assert spans[0][1] <= spans[1][0]


def test_meta_is_json_and_floats_keep_all_digits() -> None:
    state = State("pretrain", {"seed": 3})
    value = 0.1 + 0.2
    with state.locked():
        state.save(1, TENSORS, {"step": 1, "history": [{"loss": value}]}, wait=True)
    meta = json.loads((state.directory / "step-00000001" / "meta.json").read_text())
    assert meta["history"][0]["loss"] == value

"""Training is a function of its inputs: kills, splits and interruptions leave no trace in the
result.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.order import batch_ids
from llm.data.windows import Rows
from llm.errors import UserError
from llm.model.lora import add_lora
from llm.model.transformer import Transformer
from llm.parallel import hardware
from llm.params import Training
from llm.train import micro_batch
from llm.train.checkpoint.local import State
from llm.train.engine import Engine
from llm.train.trainer import Result, Trainer
from tests.model.conftest import random_model

LENGTH, ROWS, STEPS = 16, 64, 24


class Sequences:
    """Rows with a pattern that can be learned; a few positions carry no label."""

    num_rows = ROWS

    def __init__(self, poison: bool = False) -> None:
        generator = np.random.default_rng(0)
        start = generator.integers(1, 200, size=(ROWS, 1))
        self.data = (start + 3 * np.arange(LENGTH + 1)) % 299 + 1
        self.seen: list[int] = []

    def rows(self, ids: np.ndarray) -> Rows:
        self.seen += ids.tolist()
        targets = self.data[ids, 1:].copy()
        targets[:, 0] = -100
        targets[ids % 5 == 0, 1] = -100
        return Rows(self.data[ids, :-1].copy(), targets, None, None)

    def label_counts(self, ids: np.ndarray) -> np.ndarray:
        return LENGTH - 1 - (ids % 5 == 0)


class Silent:
    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert all(np.isfinite(v) for v in metrics.values())


def settings(**changes: object) -> Training:
    base: dict[str, object] = {
        "batch_tokens": 8 * LENGTH,
        "sequence_length": LENGTH,
        "optimizer": "muon",
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "betas": (0.9, 0.95),
        "grad_clip": 1.0,
        "schedule": "wsd",
        "warmup_fraction": 0.1,
        "decay_fraction": 0.5,
        "min_lr_fraction": 0.0,
        "eval_every": 10,
        "eval_tokens": 1000,
        "precision": "fp32",
        "compile": False,
    }
    return Training(**{**base, **changes})  # type: ignore[arg-type]


def train(
    model: Transformer | None = None,
    state: State | None = None,
    data: Sequences | None = None,
    **changes: object,
) -> tuple[Transformer, Result]:
    model = model or random_model(0, qk_norm=True)
    model.train()
    data = data or Sequences()
    state = state or State("pretrain", {"run": os.urandom(8).hex()})
    with state.locked():
        held_out = Sequences()
        result = Trainer(
            model, data, held_out, held_out, settings(**changes), STEPS, 1, state, Silent()
        ).run()
    return model, result


def weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_training_learns_and_repeats_to_the_last_bit(optimizer: str) -> None:
    first, result = train(optimizer=optimizer)
    second, again = train(optimizer=optimizer)
    assert result.history[-1]["loss"] < 0.8 * result.history[0]["loss"]  # type: ignore[operator]
    assert same(weights(first), weights(second))
    assert result.history == again.history


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_the_split_into_micro_batches_changes_rounding_only(
    micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = train()
    monkeypatch.setattr(micro_batch, "default_micro_batch", lambda *_: micro)
    _, split = train()
    for a, b in zip(whole.history, split.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=2e-3)
    assert split.history[0]["loss"] == pytest.approx(whole.history[0]["loss"], rel=1e-6)


def test_batches_are_the_stateless_orders() -> None:
    data = Sequences()
    train(data=data)
    expected = np.concatenate([batch_ids(1, step, 8, ROWS) for step in range(STEPS)])
    assert data.seen == expected.tolist()
    assert sorted(expected[:ROWS]) == list(range(ROWS))  # no row twice in an epoch


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_stopped_run_continues_to_the_same_bytes(
    dropout: float, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def model() -> Transformer:
        fresh = random_model(0, qk_norm=True)
        add_lora(fresh, 4, 8.0, dropout, ["q_proj", "down_proj"], 0)
        return fresh

    whole, expected = train(model())
    state = State("finetune", {"run": f"stopped {dropout}"})
    step = Trainer.step
    for stop_at in (5, 6, 17):

        def interrupted(
            self: Trainer, number: int, batches: Iterator, stop_at: int = stop_at
        ) -> tuple[float, float, float]:
            if number == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(self, number, batches)

        monkeypatch.setattr(Trainer, "step", interrupted)
        with pytest.raises(SystemExit, match=f"step {stop_at + 1}"):
            train(model(), state)
    monkeypatch.setattr(Trainer, "step", step)
    resumed, result = train(model(), state)
    assert "resumes after step 18" in capfd.readouterr().out
    assert same(weights(whole), weights(resumed))
    assert result.history == expected.history
    assert result.val_loss == expected.val_loss


@pytest.mark.parametrize(("device", "expected"), [("large", 8), ("small", 2)])
def test_a_run_continued_on_another_device_takes_the_micro_batches_that_fit_there(
    device: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State("pretrain", {"run": f"moved to {device}"})
    step = Trainer.step

    def interrupted(self: Trainer, number: int, batches: Iterator) -> tuple[float, float, float]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, batches)

    monkeypatch.setattr(hardware, "name", lambda _: "large")
    monkeypatch.setattr(micro_batch, "default_micro_batch", lambda *_: 8)
    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(SystemExit):
        train(state=state)
    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setattr(hardware, "name", lambda _: device)
    monkeypatch.setattr(micro_batch, "default_micro_batch", lambda *_: 2)
    _, result = train(state=state)
    assert result.timing["micro_batch"] == expected


def test_a_stop_in_the_last_validation_is_honoured_and_nothing_is_trained_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, evaluate = State("pretrain", {"run": "stopped at the end"}), Engine.evaluate

    def interrupted(self: Engine, data: Sequences) -> float:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, data)

    monkeypatch.setattr(Engine, "evaluate", interrupted)
    with pytest.raises(SystemExit, match=f"stopped after step {STEPS};"):
        train(state=state, eval_every=STEPS)
    monkeypatch.setattr(Engine, "evaluate", evaluate)
    data = Sequences()
    _, result = train(state=state, data=data)
    assert data.seen == []
    assert result.history[-1]["step"] == STEPS


def test_a_finished_run_is_not_trained_again() -> None:
    state = State("pretrain", {"run": "twin"})
    first, expected = train(state=state)
    data = Sequences()
    second, result = train(random_model(3, qk_norm=True), state, data)
    assert data.seen == []
    assert same(weights(first), weights(second))
    assert (result.val_loss, result.history) == (expected.val_loss, expected.history)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_step_and_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss, calls = Transformer.loss, []

    def poisoned(self: Transformer, *args: object, **kwargs: object) -> torch.Tensor:
        calls.append(weights(self))
        value = loss(self, *args, **kwargs)  # type: ignore[arg-type]
        return value * float("nan") if len(calls) == 7 else value

    monkeypatch.setattr(Transformer, "loss", poisoned)
    model = random_model(0, qk_norm=True)
    with pytest.raises(UserError, match="not finite at step 7") as caught:
        train(model)
    assert str(batch_ids(1, 6, 8, ROWS)[0]) in str(caught.value)
    assert same(calls[-1], weights(model))


def test_labels_weigh_the_same_however_few_a_row_has() -> None:
    model = random_model(0, qk_norm=True)
    _, result = train(random_model(0, qk_norm=True))
    ids = batch_ids(1, 0, 8, ROWS)
    rows = Sequences().rows(ids)
    with torch.no_grad():
        logits = model(torch.from_numpy(rows.tokens)).double()
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(rows.targets).flatten()
    )
    assert result.history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_checkpoints_are_written_while_training_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_STATE_SECONDS", "0")
    threads: set[str] = set()
    write = State._write

    def slow(self: State, *args: object) -> None:
        threads.add(threading.current_thread().name)
        time.sleep(0.01)
        write(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(State, "_write", slow)
    state = State("pretrain", {"run": "async"})
    model, _ = train(state=state)
    assert threading.main_thread().name not in threads
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == STEPS
    assert torch.equal(loaded[0]["model.model.norm.weight"], model.model.norm.weight)
    assert not list(Path(state.directory).glob("*.tmp"))

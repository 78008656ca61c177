"""What a run takes is told while it runs and after it, and never in the files that other stages
read.
"""

from __future__ import annotations

import os

import pytest

from llm.parallel import hardware
from llm.train import throughput, trainer
from llm.train.checkpoint.local import State
from llm.train.history import COLUMNS
from llm.train.trainer import Trainer
from tests.model.conftest import random_model
from tests.train.test_trainer import STEPS, Sequences, settings


class Curves:
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.points.append((step, metrics))


def test_rates_and_memory_go_to_the_tracker_and_not_to_the_history(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(throughput, "INTERVAL", 0.0)
    monkeypatch.setattr(hardware, "matmul_flops_per_second", lambda *_: 1e12)
    monkeypatch.setenv("LLM_STATE_SECONDS", "0")
    state, curves, data = State("pretrain", {"run": os.urandom(8).hex()}), Curves(), Sequences()
    with state.locked():
        trainer = Trainer(
            random_model(0).train(), data, data, data, settings(), STEPS, 1, state, curves
        )
        result = trainer.run()
    live = [(step, point) for step, point in curves.points if "mfu" in point]
    batch = settings().batch_tokens
    assert [tokens for tokens, _ in live] == [step * batch for step in range(1, STEPS + 1)]
    rows = [(tokens, point["step"]) for tokens, point in curves.points if "loss" in point]
    assert rows == [(step * batch, step) for step in range(1, STEPS + 1)]
    for _, point in live:
        assert set(point) == {"tokens_per_second", "mfu", "peak_memory_bytes"}
        assert point["mfu"] == pytest.approx(
            point["tokens_per_second"] * result.flops / result.tokens / 1e12
        )
        assert point["peak_memory_bytes"] > 1e7
    assert all(set(row) == set(COLUMNS) for row in result.history)
    timing = result.timing
    assert timing["checkpoints"] == STEPS  # one after each step but the last, and the last state
    assert 0 < timing["loader_seconds"] < timing["step_seconds"]
    assert timing["checkpoint_seconds"] > 0
    assert timing["steps_measured"] == STEPS
    assert timing["processes"] == 1


def test_nothing_is_told_more_often_than_the_progress_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer.STATE_SECONDS > throughput.INTERVAL > 1
    state, curves, data = State("pretrain", {"run": os.urandom(8).hex()}), Curves(), Sequences()
    with state.locked():
        Trainer(
            random_model(0).train(), data, data, data, settings(), STEPS, 1, state, curves
        ).run()
    assert not [point for _, point in curves.points if "mfu" in point]

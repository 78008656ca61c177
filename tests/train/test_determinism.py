"""What promises identical bytes, and that the promise is not made where it does not hold."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from llm.model.transformer import Transformer
from llm.train.checkpoint.local import State
from llm.train.determinism import deterministic, verdict
from llm.train.trainer import Trainer
from tests.train.test_trainer import same, train, weights

CPU: dict[str, Any] = {
    "device": "CPU AMD EPYC 9R14",
    "processes": 1,
    "threads": 2,
    "dtype": "float32",
    "compiled": False,
    "deterministic": False,
}
CUDA = {**CPU, "device": "CUDA NVIDIA H200", "threads": None, "dtype": "bfloat16"}


def flags() -> tuple[object, ...]:
    cudnn = torch.backends.cudnn
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.get_float32_matmul_precision(),
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_deterministic_algorithms_are_on_inside_and_all_is_restored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.set_float32_matmul_precision("high")
    try:
        before = flags()
        with pytest.raises(RuntimeError, match="put_"), deterministic(True, compiled=True):  # noqa: PT012
            assert flags() == (True, False, True, False, "highest", ":4096:8")
            with deterministic(True):
                pass
            assert flags()[0] is True  # an inner block does not end the outer one
            torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))  # has no deterministic form
        assert flags() == before
        with deterministic(False):
            assert flags() == before
    finally:
        torch.set_float32_matmul_precision("highest")


def test_training_and_validation_run_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    loss = Transformer.loss

    def watched(self: Transformer, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled()))
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(Transformer, "loss", watched)
    plain, _ = train()
    assert set(seen) == {(True, False), (False, False)}
    seen.clear()
    strict, _ = train(deterministic=True)
    assert set(seen) == {(True, True), (False, True)}
    assert not torch.are_deterministic_algorithms_enabled()
    assert same(weights(plain), weights(strict))  # a CPU's algorithms are the same ones


@pytest.mark.parametrize(
    ("places", "holds", "says"),
    [
        (
            [CPU],
            True,
            "yes, with the same device and counts (CPU AMD EPYC 9R14, one process, 2 threads)",
        ),
        (
            [{**CPU, "processes": 4, "threads": 1}],
            True,
            "(CPU AMD EPYC 9R14, 4 processes, one thread)",
        ),
        ([CUDA], False, "no: CUDA without deterministic: true"),
        ([{**CUDA, "deterministic": True}], True, "(CUDA NVIDIA H200, one process)"),
        ([{**CUDA, "device": "MPS Apple M4"}], False, "no: MPS without deterministic: true"),
        (
            [CPU, {**CPU, "threads": 4}],
            False,
            "no: the run was resumed on different hardware (threads 2, then 4)",
        ),
        ([CPU, {**CPU, "threads": 4}, CPU], False, "(threads 4, then 2)"),
    ],
)
def test_the_verdict_says_yes_only_for_one_place_that_always_adds_up_alike(
    places: list[dict[str, Any]], holds: bool, says: str
) -> None:
    found, text = verdict(places)
    assert found is holds
    assert says in text
    assert text.startswith("yes" if holds else "no")


def test_a_run_resumed_with_another_number_of_threads_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    state = State("pretrain", {"run": "threads"})
    step = Trainer.step

    def interrupted(self: Trainer, number: int, batches: Iterator) -> tuple[float, float, float]:
        if number == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number, batches)

    threads = torch.get_num_threads()
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", interrupted)
        with pytest.raises(SystemExit):
            train(state=state)
    with monkeypatch.context() as patch:  # real ones would spin, waiting for a core
        patch.setattr(torch, "get_num_threads", lambda: threads + 1)
        _, result = train(state=state)
        _, other = train()
    changed = f"threads {threads}, then {threads + 1}"
    assert f"resumed on different hardware ({changed})" in capfd.readouterr().out
    assert result.timing["deterministic"] is False
    assert changed in result.timing["identical_bytes"]
    assert other.timing["deterministic"] is True
    _, again = train(state=state)  # a finished run keeps its history of places
    assert again.timing["deterministic"] is False

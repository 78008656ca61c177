"""The number of processes is not a hyperparameter: 1, 2 and 4 consume the same batches and come to
the same model.

How far apart they may end, in float32 with AdamW: what differs is the order in which a step's N = 5
micro-batch gradients are added up, each the same to the last bit. Two orders differ by at most 2(N
- 1)u of the sum of absolute values (Higham 2002, Accuracy and Stability of Numerical Algorithms,
  section 4.2), u = 2⁻²⁴, which is about √N of the
sum for gradients that are independent. AdamW moves a weight by the learning rate η at most, so T
steps part two runs by at most Tη · 2(N - 1)u√N in each of n weights, and the loss, at a gradient of
norm g, by √n g times that: 9e-4 nats in 80 steps. Measured in 200 steps: 3.4e-5 nats. (To first
order: that differences are not amplified is what the measurement shows.)
"""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm.data.order import batch_ids
from llm.errors import UserError
from llm.parallel import processes
from tests.train.workers import BATCH, MICRO, ROWS, Workers

STEPS, HALF = 80, 40
RATE = 0.01  # peak, of tests.train.test_trainer.settings
WEIGHTS = 131_104


@pytest.fixture(scope="module")
def halves(
    workers: Workers, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[Path, list[dict[str, Any]]]]:
    """By number of processes: the state of a run that was stopped half-way, and what its processes
    answered.
    """
    found = {}
    for world in (1, 2, 4):
        root = tmp_path_factory.mktemp(f"half-{world}")
        found[world] = root, workers.run(world, root, steps=STEPS, stop=HALF)
    return found


@pytest.fixture(scope="module")
def wholes(
    workers: Workers,
    halves: dict[int, tuple[Path, list[dict[str, Any]]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[int, int], tuple[Path, list[dict[str, Any]]]]:
    """By the numbers of processes of the first half and of the second: the finished run."""
    found = {}
    for before, after in ((1, 1), (2, 2), (4, 4), (4, 1), (1, 2), (2, 4)):
        root = tmp_path_factory.mktemp("whole") / "root"
        found[before, after] = (
            root,
            workers.run(after, root, steps=STEPS, copy=str(halves[before][0])),
        )
    return found


def consumed(answers: list[dict[str, Any]], steps: int) -> list[list[int]]:
    """Rows of each step's global batch, put together from what each process read."""
    world = len(answers)
    calls = [
        a["calls"][1:] if world > 1 else a["calls"] for a in answers
    ]  # the first opens the exchange
    rounds = -(-BATCH // (MICRO * world))
    return [
        [row for i in range(rounds) for own in calls for row in own[step * rounds + i]]
        for step in range(steps)
    ]


def test_the_global_batches_are_the_same_for_any_number_of_processes(
    halves: dict, wholes: dict
) -> None:
    expected = [batch_ids(1, step, BATCH, ROWS).tolist() for step in range(STEPS)]
    for world in (1, 2, 4):
        assert consumed(halves[world][1], HALF) == expected[:HALF]
    for (_, world), (_, answers) in wholes.items():
        assert consumed(answers, HALF) == expected[HALF:]
        assert [a["micro"] for a in answers] == [MICRO] * world


def test_losses_and_weights_agree_within_the_bound_also_after_a_change_of_processes(
    wholes: dict,
) -> None:
    root, answers = wholes[1, 1]
    history = answers[0]["history"]
    weights = dict(np.load(root / "weights.npz"))
    assert len(history) == STEPS
    assert sum(value.size for value in weights.values()) == WEIGHTS
    micros = -(-BATCH // MICRO)
    by_weight = STEPS * RATE * 2 * (micros - 1) * 2**-24 * math.sqrt(micros)
    bound = by_weight * math.sqrt(WEIGHTS) * max(row["grad_norm"] for row in history)
    assert bound < 3e-3
    assert history[-1]["loss"] < history[0]["loss"] - 1  # nats: it is training that agrees
    for key, (other, (first, *others)) in wholes.items():
        for row, expected in zip(first["history"], history, strict=True):
            assert abs(row["loss"] - expected["loss"]) < bound, (key, row)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3), (key, row)
        assert first["history"][0]["loss"] == pytest.approx(history[0]["loss"], rel=1e-12)
        assert abs(first["val_loss"] - answers[0]["val_loss"]) < bound
        for name, value in np.load(other / "weights.npz").items():
            assert np.abs(value - weights[name]).max() < 1e-3, (key, name)
        assert all(a["digest"] == first["digest"] for a in others), (
            "the processes' copies of the model drifted apart"
        )


def test_a_stop_asked_of_one_process_ends_all_after_the_same_step(halves: dict) -> None:
    for world, (root, answers) in halves.items():
        # The newest; on a slow machine the time for another one came before.
        newest = max(path.name for path in root.glob(".state/pretrain/*/step-*"))
        assert newest == f"step-{HALF:08d}", world
        assert len({a["digest"] for a in answers}) == 1
        assert all("error" in a for a in answers)


def test_a_run_continued_elsewhere_does_not_promise_its_bytes(wholes: dict) -> None:
    for (before, after), (_, answers) in wholes.items():
        timing = answers[0]["timing"]
        assert timing["deterministic"] is (before == after)
        expected = (
            "yes"
            if before == after
            else f"no: the run was resumed on different hardware (processes {before}, then"
        )
        assert timing["identical_bytes"].startswith(expected)


def test_four_processes_stopped_and_resumed_end_with_the_same_bytes(
    workers: Workers, tmp_path: Path
) -> None:
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = workers.run(4, tmp_path / "whole", steps=24, optimizer="muon")
    workers.run(4, tmp_path / "stopped", steps=24, optimizer="muon", stop=11)
    resumed = workers.run(
        4, tmp_path / "resumed", steps=24, optimizer="muon", copy=str(tmp_path / "stopped")
    )
    assert resumed[0]["history"] == whole[0]["history"]
    assert {a["digest"] for a in resumed} == {a["digest"] for a in whole}


def test_dropout_of_an_adapter_is_the_same_for_any_number_of_processes(
    workers: Workers, tmp_path: Path
) -> None:
    losses = []
    for world in (1, 2, 4):
        root = tmp_path / str(world)
        root.mkdir()
        answers = workers.run(world, root, steps=10, lora=0.5)
        losses.append([row["loss"] for row in answers[0]["history"]])
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def test_one_process_that_fails_ends_all_and_each_says_why(
    workers: Workers, tmp_path: Path
) -> None:
    answers = workers.run(2, tmp_path, steps=STEPS, broken=1)
    assert answers[1]["error"] == "data/tokens/train-00000.npy cannot be read"
    assert "process 0 ends because another one ended" in answers[0]["error"]


def test_rows_that_one_process_cannot_read_end_all_and_the_next_run_goes_on(
    workers: Workers, tmp_path: Path
) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    whole = workers.run(2, tmp_path / "whole", steps=8)
    cut = workers.run(2, tmp_path / "cut", steps=8, unread=1)
    assert [answer["error"] for answer in cut] == ["1", "1"]
    assert cut[0]["said"].count("error: data/tokens/train-00000.npy cannot be read\n") == 1
    assert "cannot be read" not in cut[1]["said"]
    assert list((tmp_path / "cut").glob(".state/pretrain/*/step-0000000[1-7]"))
    resumed = workers.run(2, tmp_path / "resumed", steps=8, copy=str(tmp_path / "cut"))
    assert [answer["digest"] for answer in resumed] == [answer["digest"] for answer in whole]


def test_processes_that_disagree_are_refused_by_process_and_key(
    workers: Workers, tmp_path: Path
) -> None:
    inputs = [{"pretrain": {"learning_rate": rate}, "seed": 1} for rate in (0.01, 0.02)]
    answers = workers.run(2, tmp_path, steps=STEPS, inputs=inputs)
    for answer in answers:
        assert (
            "pretrain.learning_rate is 0.02 in process 1 and 0.01 in process 0" in answer["error"]
        )
        assert answer["calls"] == []


def test_a_process_that_hangs_is_named_by_the_others(workers: Workers, tmp_path: Path) -> None:
    answers = workers.run(3, tmp_path, steps=STEPS, hang=1, timeout=6)
    errors = [
        answer["error"]
        for answer in answers
        if "process 1 of 3 did not join a collective" in answer.get("error", "")
    ]
    assert errors, answers
    assert "within 6 s" in errors[0]


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        settings = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for key, value in settings.items():
            monkeypatch.setenv(key, value)
        with pytest.raises(UserError, match=f"port {port} is in use"), processes.process_group():
            pass


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize(("batch", "micro"), [(1, 8), (9, 2), (16, 4), (16, 5), (64, 64)])
def test_every_row_is_dealt_once_and_all_processes_get_equally_many_micro_batches(
    batch: int, micro: int, world: int
) -> None:
    size = processes.balanced_micro_batch(micro, batch, world)
    assert size <= micro
    hands = [processes.micro_batches_of_rank(batch, size, rank, world) for rank in range(world)]
    assert len({len(hand) for hand in hands}) == 1
    assert len(hands[0]) == -(
        -batch // (micro * world)
    )  # no more rounds than with the largest micro-batch
    rows = sorted(
        row for hand in hands for n in hand for row in range(n * size, min(batch, (n + 1) * size))
    )
    assert rows == list(range(batch))
    assert world > 1 or size == micro

"""FSDP is no hyperparameter either: a sharded run consumes the batches of one process and comes to
its model.

The bound is that of tests/parallel/test_processes.py, whose argument does not depend on who keeps
which weight: N = 5 micro-batch gradients are added up in another order. With Muon there is no such
    bound: its update rounds to bfloat16, so
that a last digit may become a third one; what is measured there is stated instead.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from llm.data.order import batch_ids
from tests.model.conftest import random_model
from tests.train.workers import BATCH, ROWS, Workers

STEPS, PART, RATE, WEIGHTS = 80, 20, 0.01, 111_904
SHORT = 24

Run = tuple[Path, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def alone(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train all steps in one process."""
    root = tmp_path_factory.mktemp("alone")
    return root, workers.run(1, root, steps=STEPS)


@pytest.fixture(scope="module")
def begun(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The first steps in four processes, stopped. Few: on two cores a step of theirs takes as long
    as ten of one.
    """
    root = tmp_path_factory.mktemp("begun")
    return root, workers.run(4, root, steps=STEPS, stop=PART, sharded=True)


@pytest.fixture(scope="module")
def continued(workers: Workers, begun: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As many again in four other processes."""
    root = tmp_path_factory.mktemp("continued") / "root"
    return root, workers.run(4, root, steps=STEPS, stop=2 * PART, copy=str(begun[0]), sharded=True)


@pytest.fixture(scope="module")
def wholes(
    workers: Workers, continued: Run, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Run]:
    """All others by fewer processes: sharded, replicated, alone."""
    found = {}
    for name, world, sharded in (("fsdp 2", 2, True), ("ddp 2", 2, False), ("one", 1, False)):
        root = tmp_path_factory.mktemp("whole") / "root"
        found[name] = (
            root,
            workers.run(world, root, steps=STEPS, copy=str(continued[0]), sharded=sharded),
        )
    return found


def rows_of_steps(answers: list[dict[str, Any]], steps: int, opening: int = 0) -> list[list[int]]:
    """Rows of each step's global batch, put together from what each process read; `opening`: calls
    before them.
    """
    rounds = -(-BATCH // (2 * len(answers)))
    return [
        [
            row
            for i in range(rounds)
            for a in answers
            for row in a["calls"][opening + step * rounds + i]
        ]
        for step in range(steps)
    ]


def test_sharded_runs_consume_the_same_batches(
    begun: Run, continued: Run, wholes: dict[str, Run]
) -> None:
    expected = [batch_ids(1, step, BATCH, ROWS).tolist() for step in range(STEPS)]
    assert rows_of_steps(begun[1], PART) == expected[:PART]
    assert rows_of_steps(continued[1], PART) == expected[PART : 2 * PART]
    for name, (_, answers) in wholes.items():
        assert (
            rows_of_steps(answers, STEPS - 2 * PART, opening=int(name == "ddp 2"))
            == expected[2 * PART :]
        )


def test_a_checkpoint_of_four_shards_is_continued_by_any_number_within_the_bound(
    alone: Run, begun: Run, wholes: dict[str, Run]
) -> None:
    (first,), weights = alone[1], dict(np.load(alone[0] / "weights.npz"))
    history = first["history"]
    bound = (
        STEPS
        * RATE
        * 2
        * 4
        * 2**-24
        * math.sqrt(5 * WEIGHTS)
        * max(row["grad_norm"] for row in history)
    )
    assert bound < 3e-3  # nats
    folder = max(begun[0].glob(".state/pretrain/*/step-*"))
    assert len(list(folder.glob("shard-*.safetensors"))) == 4
    for name, (root, answers) in wholes.items():
        assert [row["step"] for row in answers[0]["history"]] == list(range(1, STEPS + 1))
        for row, expected in zip(answers[0]["history"], history, strict=True):
            assert abs(row["loss"] - expected["loss"]) < bound, (name, row)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3), (name, row)
        assert abs(answers[0]["val_loss"] - first["val_loss"]) < bound
        for key, value in np.load(root / "weights.npz").items():
            assert np.abs(value - weights[key]).max() < 1e-3, (name, key)


def test_each_process_holds_its_share_of_the_weights_only(
    begun: Run, wholes: dict[str, Run]
) -> None:
    for answers in (begun[1], wholes["fsdp 2"][1]):
        held = [answer["held"] for answer in answers]
        assert sum(held) == WEIGHTS
        assert max(held) < 1.05 * WEIGHTS / len(answers)
    assert wholes["fsdp 2"][1][0]["timing"]["sharded"] is True
    assert "processes 4, then 2" in wholes["fsdp 2"][1][0]["timing"]["identical_bytes"]
    assert "sharded True, then False" in wholes["ddp 2"][1][0]["timing"]["identical_bytes"]


@pytest.fixture(scope="module")
def muon(workers: Workers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Short runs with Muon and bfloat16: alone, sharded, and sharded with a stop."""
    roots = {name: tmp_path_factory.mktemp("muon") for name in ("alone", "sharded", "stopped")}
    job = {"steps": SHORT, "optimizer": "muon", "precision": "bf16"}
    found = {"alone": (roots["alone"], workers.run(1, roots["alone"], **job))}
    found["sharded"] = roots["sharded"], workers.run(3, roots["sharded"], sharded=True, **job)
    found["stopped"] = (
        roots["stopped"],
        workers.run(3, roots["stopped"], sharded=True, stop=11, **job),
    )
    return found


def test_muon_on_whole_matrices_of_a_sharded_model_is_muon(muon: dict[str, Run]) -> None:
    one, three = (muon[name][1][0]["history"] for name in ("alone", "sharded"))
    assert one[-1]["loss"] < one[0]["loss"] - 0.3
    assert three[0]["loss"] == pytest.approx(
        one[0]["loss"], rel=1e-6
    )  # bfloat16 in both, the same roundings
    for row, expected in zip(three, one, strict=True):
        assert abs(row["loss"] - expected["loss"]) < 0.05, row  # nats; measured: 0.007


def test_sharded_processes_stopped_and_resumed_end_with_the_same_bytes(
    workers: Workers, muon: dict[str, Run], tmp_path: Path
) -> None:
    job = {"steps": SHORT, "optimizer": "muon", "precision": "bf16", "sharded": True}
    resumed = workers.run(3, tmp_path / "resumed", copy=str(muon["stopped"][0]), **job)
    assert resumed[0]["history"] == muon["sharded"][1][0]["history"]
    assert {a["digest"] for a in resumed} == {a["digest"] for a in muon["sharded"][1]}
    assert resumed[0]["timing"]["deterministic"] is True


def test_a_sharded_adapter_trains_like_one_that_is_whole(workers: Workers, tmp_path: Path) -> None:
    losses = []
    for world in (1, 2):
        root = tmp_path / str(world)
        root.mkdir()
        answers = workers.run(world, root, steps=10, lora=0.5, sharded=True)
        losses.append([row["loss"] for row in answers[0]["history"]])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_cards_of_different_kinds_share_the_micro_batch_that_fits_all_of_them(
    workers: Workers, tmp_path: Path
) -> None:
    """The dry batch of one process fails, and the other does not wait for it."""
    answers = workers.run(2, tmp_path, steps=3, sharded=True, cards=[("large", 4), ("small", 1)])
    assert [answer["micro"] for answer in answers] == [1, 1]
    assert answers[0]["timing"]["identical_bytes"].startswith(
        "yes, with the same device and counts (CPU large + small"
    )
    assert answers[1]["calls"].count([0]) >= 1
    none = workers.run(
        2, tmp_path / "none", steps=3, sharded=True, cards=[("large", 4), ("small", 0)]
    )
    assert "one sequence of" in none[1]["error"]
    assert "process 0 ends because another one ended" in none[0]["error"]


def test_cards_that_compute_in_different_types_are_refused(
    workers: Workers, tmp_path: Path
) -> None:
    answers = workers.run(2, tmp_path, steps=3, sharded=True, precision=["bf16", "fp32"])
    for answer in answers:
        assert (
            "type is torch.float32 in process 1 and torch.bfloat16 in process 0" in answer["error"]
        )


@pytest.mark.parametrize("damage", ["missing", "extra", "flipped"])
def test_a_checkpoint_with_a_broken_shard_is_named_and_the_one_before_it_used(
    workers: Workers, begun: Run, tmp_path: Path, damage: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(begun[0], source)
    good = max(source.glob(".state/pretrain/*/step-*"))
    bad = Path(shutil.copytree(good, good.with_name(f"step-{PART + 20:08d}")))
    shard = sorted(bad.glob("shard-*"))[2]
    if damage == "missing":
        shard.unlink()
    elif damage == "extra":
        shutil.copyfile(shard, shard.with_name("shard-00005-model-00001-of-00001.safetensors"))
    else:
        data = bytearray(shard.read_bytes())
        data[-5] ^= 1
        shard.write_bytes(data)
    answers = workers.run(2, tmp_path / "root", steps=PART + 2, copy=str(source), sharded=True)
    assert len(answers[0]["calls"]) >= 2 * 2  # two steps were left
    said = answers[0]["said"]
    assert str(shard.parent.name) in said
    expected = {
        "missing": f"shard {shard.name} is missing",
        "extra": "shard-00005-model-00001-of-00001.safetensors is none of its 4 shards",
        "flipped": f"the bytes of {shard.name} are not those that were written",
    }
    assert expected[damage] in said
    assert said.count("trying an older one") == 1
    (last,) = (tmp_path / "root").glob(f".state/pretrain/*/step-{PART + 2:08d}")
    assert json.loads((last / "meta.json").read_text())["step"] == PART + 2


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_model_begins_with_the_bytes_of_one_that_is_whole(
    workers: Workers, tmp_path: Path, tied: bool
) -> None:
    sizes = {
        "vocab_size": 301,
        "hidden_size": 128,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
    }
    heads = {
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 64,
    }
    other = {
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "qk_norm": True,
    }
    job = {"start": "new", "config": {**sizes, **heads, **other}}
    (one,) = workers.run(1, tmp_path, **job)
    for answer in (many := workers.run(3, tmp_path, **job)):
        assert answer["digests"] == one["digests"]
    assert sum(answer["held"] for answer in many) == one["held"]


def test_a_checkpoint_in_many_files_and_bfloat16_is_read_into_shards(
    workers: Workers, tmp_path: Path
) -> None:
    model, tensors = random_model(0), {}
    for number, (name, value) in enumerate(model.state_dict().items()):
        tensors.setdefault(number % 3, {})[name] = value.bfloat16()
    for number, part in tensors.items():
        save_file(part, tmp_path / f"model-{number}.safetensors")
    files = {
        name: f"model-{number}.safetensors" for number, part in tensors.items() for name in part
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_json(0, "bfloat16")))
    (one,) = workers.run(1, tmp_path, start=str(tmp_path))
    assert {digest.split()[0] for digest in one["digests"].values()} == {
        "torch.bfloat16",
        "torch.float32",
    }
    for answer in workers.run(4, tmp_path, start=str(tmp_path)):
        assert answer["digests"] == one["digests"]
        assert answer["held"] < 0.3 * one["held"]

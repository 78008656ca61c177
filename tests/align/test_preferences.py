"""Pairs from programs: which answers they hold, and what becomes of prompts without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.align import pair_files, preferences
from llm.align.pair_files import Preference
from llm.errors import UserError
from llm.params.align import Align
from llm.tokenizer.bpe import Tokenizer

EXAMPLE = {"id": "1", "task": "qa", "prompt": "Where?", "response": "in Rome"}
LORA = {"r": 2, "alpha": 2, "dropout": 0.0, "target_modules": ["q_proj"]}


def settings(**changes: Any) -> Align:
    values: dict[str, Any] = {
        "beta": 0.1, "tasks": ["qa"], "prompts": 2, "samples": 2, "temperature": 1.0, "margin": 0.2,
        "max_new_tokens": 8, "val_fraction": 0.2, "epochs": 1, "lora": LORA, "batch_tokens": 128,
        "sequence_length": 64, "optimizer": "adamw", "learning_rate": 0.001, "weight_decay": 0.0,
        "betas": [0.9, 0.95], "grad_clip": 1.0, "schedule": "cosine", "warmup_fraction": 0.1,
        "decay_fraction": 0.5, "min_lr_fraction": 0.1, "eval_every": 5, "eval_tokens": 100,
        "precision": "fp32", "compile": False,
    }  # fmt: skip
    return Align.model_validate(values | changes)


def pair(answers: list[str | None], margin: float = 0.2) -> tuple[list[Preference], dict[str, int]]:
    kinds = {"qa": "question_answering"}
    found, dropped = preferences.choose_pairs([EXAMPLE], [answers], kinds, margin)
    return found, dict(dropped)


def test_the_best_answer_is_chosen_and_the_worst_rejected() -> None:
    found, dropped = pair(["to Paris", "in Rome", None, "Rome"])
    assert dropped == {}
    assert found == [Preference("1", "qa", "Where?", "in Rome", "to Paris", 1.0, 0.0)]


@pytest.mark.parametrize(
    ("answers", "margin", "reason"),
    [
        ([None, None], 0.2, "no_answer_ended"),
        (["in Rome", "In Rome!"], 0.2, "all_rewards_equal"),
        (["to Oslo", "to Paris"], 0.2, "all_rewards_equal"),
        (["in Rome", "Rome"], 0.9, "below_margin"),
        (["in Rome", ""], 0.2, "empty_answer"),
    ],
)
def test_a_prompt_without_a_pair_is_counted_by_its_reason(
    answers: list[str | None], margin: float, reason: str
) -> None:
    assert pair(answers, margin) == ([], {reason: 1})


def test_a_reward_that_is_no_number_makes_no_pair() -> None:
    assert (
        preferences.pair(EXAMPLE, ["a", "b"], np.array([1.0, np.nan]), 0.1) == "reward_not_finite"
    )


def test_rewards_are_the_tasks_own_metrics() -> None:
    answers, responses = ["in Rome", "in the Rome of old"], ["in Rome"] * 2
    f1 = 2 * 2 / (2 + 4)  # SQuAD's: without articles
    found = preferences.rewards("question_answering", answers, responses)
    assert found.tolist() == pytest.approx([1.0, (0 + f1) / 2])
    with pytest.raises(UserError, match="classification have no graded reward"):
        preferences.rewards("classification", ["a"], ["a"])


def write_mix(path: Path, count: int) -> Path:
    rows = [{**EXAMPLE, "id": str(i)} for i in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_the_prompts_are_drawn_by_a_hash_and_more_keep_those_before(tmp_path: Path) -> None:
    path = write_mix(tmp_path / "train.parquet", 40)
    few = preferences.training_prompts(path, settings(prompts=5), 1)
    more = preferences.training_prompts(path, settings(prompts=9), 1)
    assert len(few) == 5
    assert more[:5] == few
    assert preferences.training_prompts(path, settings(prompts=5), 2) != few
    with pytest.raises(UserError, match="no example of 'qua'; did you mean qa"):
        preferences.training_prompts(path, settings(tasks=["qua"]), 1)


def test_pairs_go_to_a_file_and_back_and_bad_ones_are_refused(tmp_path: Path) -> None:
    good = [Preference(str(i), "qa", "Where?", "in Rome", "to Paris", 1.0, 0.0) for i in range(30)]
    sides = preferences.split(good, 0.2, {})
    assert sorted(p.id for own in sides.values() for p in own) == sorted(p.id for p in good)
    path = tmp_path / "train.parquet"
    pair_files.write_pairs(path, sides["train"])
    assert [row["id"] for row in pair_files.read_pairs(path)] == [p.id for p in sides["train"]]
    for chosen, rejected in (("same", "same"), ("", "x"), ("x", "")):
        bad = Preference("7", "qa", "Where?", chosen, rejected, 1.0, 0.0)
        pair_files.write_pairs(path, [bad])
        with pytest.raises(UserError, match="pair 7 needs two different answers"):
            pair_files.read_pairs(path)
    pair_files.write_pairs(path, [])
    with pytest.raises(UserError, match="holds no pairs"):
        pair_files.read_pairs(path)
    with pytest.raises(UserError, match=r"no pair for .* among 1 .*9 below_margin"):
        preferences.split(good[:1], 0.2, {"below_margin": 9})


def test_pairs_that_do_not_fit_a_row_are_left_out_and_counted() -> None:
    tokenizer = Tokenizer.train(["in Rome to Paris Where?"] * 3, 300)
    short = Preference("1", "qa", "Where?", "in Rome", "to Paris", 1.0, 0.0)
    long = Preference("2", "qa", "Where? " * 50, "in Rome", "to Paris", 1.0, 0.0)
    kept, dropped = preferences.fitting([short, long], tokenizer, 100)
    assert (kept, dict(dropped)) == ([short], {"too_long": 1})

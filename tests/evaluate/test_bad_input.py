"""Odd input is defined, counted and told, and never drops an example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from llm.errors import UserError
from llm.evaluate import answers as run
from llm.evaluate import test_sets
from llm.evaluate.answers import Asking
from llm.evaluate.metrics import Measure
from llm.evaluate.test_sets import TestSet
from tests.evaluate.standins import Bytes
from tests.evaluate.test_answers import held_out
from tests.model.conftest import random_model


def scores(test: TestSet, texts: list[str]) -> dict[str, Measure]:
    return {measure.name: measure for measure in run.measures(test, texts, "form")}


def changed(kind: str, *changes: dict[str, Any]) -> TestSet:
    test = held_out(kind, len(changes))
    return TestSet(
        kind, kind, [row | change for row, change in zip(test.rows, changes, strict=True)]
    )


@pytest.mark.parametrize("kind", ["summarization", "question_answering", "instructions"])
def test_an_empty_prediction_scores_nothing_and_is_counted(kind: str) -> None:
    found = scores(held_out(kind, 3), ["", " \n", "Return the sum."])
    assert found["empty"].column == [1.0, 1.0, 0.0]
    for name in {"rouge1", "rougeLsum", "f1", "exact_match"} & set(found):
        assert found[name].column == [0.0, 0.0, 1.0]
    if "bleu" in found:
        assert found["bleu"].column[:2] == [0.0, 0.0]
        assert 0 < found["bleu"].value() < 100


@pytest.mark.parametrize("references", [[], [""], ["  "]])
def test_an_empty_or_missing_reference_is_an_empty_text_and_is_counted(
    references: list[str],
) -> None:
    for kind in ("summarization", "question_answering"):
        found = scores(
            changed(kind, {"references": references}, {}), ["something", "Return the sum."]
        )
        assert found["no_reference"].column == [1.0, 0.0]
        for name in {"rouge1", "f1", "exact_match"} & set(found):
            assert found[name].column == [0.0, 1.0]
    unanswered = changed("question_answering", {"references": ["unanswerable"]})
    assert scores(unanswered, [""])["f1"].column == [1.0]
    assert scores(unanswered, [""])["no_reference"].column == [0.0], (
        "v2.0's no-answer is a reference"
    )


def test_a_null_reference_in_the_file_is_none(tmp_path: Path) -> None:
    row = {**held_out("summarization", 1).rows[0], "references": None}
    pq.write_table(
        pa.Table.from_pylist([row, row | {"id": "1", "references": ["x"]}]), tmp_path / "s.parquet"
    )
    (test,) = test_sets.read_tests(tmp_path, None)
    assert scores(test, ["x", "x"])["no_reference"].value() == 0.5


def test_an_unseen_label_is_never_right_and_is_counted() -> None:
    test = changed(
        "classification", {"label": "zz", "references": ["zz"]}, {"label": "a"}, {"label": "bb"}
    )
    found = scores(test, ["a", "a", "bb"])
    assert found["unseen_label"].column == [1.0, 0.0, 0.0]
    assert found["accuracy"].column == [0.0, 1.0, 1.0]
    assert found["mcc"].statistics.shape == (3, 1 + 2 * 4), (
        "the choices and the unseen label are classes"
    )


def test_a_prompt_longer_than_the_context_is_cut_and_counted_for_every_kind() -> None:
    for kind in ("summarization", "question_answering", "classification", "instructions"):
        test = changed(kind, {"prompt": "long " * 100}, {})
        answers = run.answer(random_model(), Bytes(), test, Asking(True, {kind: 8}))
        counts = {measure.name: measure.column for measure in answers.extra}
        assert counts["truncated"] == [1.0, 0.0]
        assert len(answers.texts) == 2


def test_one_prompt_of_many_without_finite_logits_is_counted_in_the_message() -> None:
    model = random_model(tie_word_embeddings=False)
    model.model.embed_tokens.weight.data[ord("#")] = torch.inf
    for kind in ("summarization", "classification"):
        test = changed(kind, {}, {"prompt": "# is it?"}, {}, {})
        with pytest.raises(
            UserError, match=r"finetuned, \w+: the model's logits are not finite for 1 of 4 prompts"
        ):
            run.answer(model, Bytes(), test, Asking(True, {kind: 3}, who=f"finetuned, {kind}"))


def test_an_unfinished_answer_is_counted() -> None:
    model = random_model(tie_word_embeddings=False)
    answers = run.answer(
        model, Bytes(), held_out("summarization", 2), Asking(True, {"summarization": 4})
    )
    counts = {measure.name: measure.value() for measure in answers.extra}
    assert counts["unfinished"] == 1.0

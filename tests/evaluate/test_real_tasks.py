"""The public data sets, from their files to scores, by the rules of their own evaluation scripts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm import params, tasks
from llm.evaluate import answers as run
from llm.evaluate import baselines
from llm.evaluate.test_sets import TestSet
from llm.sources import download, raw
from llm.tasks import mixture, splits
from llm.tokenizer.bpe import Tokenizer
from tests.model.conftest import random_model


def test_set(
    directory: Path, name: str, kind: str, **source: Any
) -> tuple[TestSet, list[dict[str, Any]]]:
    """The first 60 test examples of a data set, and its raw records."""
    made = params.FilesSource(source="files", **source)
    manifest = download.write_raw(name, kind, made, directory)
    task, records = tasks.get(kind), list(raw.read(directory))
    survey = splits.survey(task, name, records, 0.05, 0.2)
    data = mixture.Dataset(
        name, kind, task, 1.0, lambda: iter(records), survey, manifest.get("positive_label")
    )
    rows: list[dict[str, Any]] = []
    for bucket in mixture.held_out(
        data, Tokenizer({bytes([i]): i for i in range(256)}), 2000, Counter(), Counter()
    ):
        rows += bucket
    return TestSet(name, kind, rows[:60]), records


test_set.__test__ = False  # type: ignore[attr-defined]

GLUE = {
    "sst2": (
        {"paths": ["glue/SST-2/dev.tsv"], "labels": ["negative", "positive"]},
        ["negative", "positive"],
    ),
    "mrpc": (
        {
            "paths": ["glue/MRPC/msr_paraphrase_train.txt"],
            "labels": ["different", "equivalent"],
            "max_documents": 600,
        },
        ["different", "equivalent"],
    ),
    "rte": (
        {"paths": ["glue/RTE/train.tsv"], "max_documents": 600},
        ["entailment", "not_entailment"],
    ),
    "ag_news": ({"paths": ["classification/ag_news.parquet"], "max_documents": 600}, None),
}


@pytest.mark.parametrize("name", GLUE)
def test_a_label_column_is_scored_by_label_likelihoods(
    name: str, data_dir: Path, tmp_path: Path
) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    source, labels = GLUE[name]
    source = source | {"paths": [str(data_dir / path) for path in source["paths"]]}
    test, _ = test_set(tmp_path, name, "classification", **source)
    choices = test.rows[0]["choices"]
    assert labels is None or choices == labels
    tokenizer = Tokenizer({bytes([i]): i for i in range(256)})
    model = random_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=1024)
    answers = run.answer(model, tokenizer, test, run.Asking(chat=True))
    truth = [row["label"] for row in test.rows]
    found = {
        m.name: m.value()
        for m in [*run.measures(test, answers.texts, answers.form), *answers.extra]
    }
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, answers.texts))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(truth, answers.texts))
    assert found["f1_macro"] == pytest.approx(f1_score(truth, answers.texts, average="macro"))
    if name in ("sst2", "mrpc"):  # GLUE's F1 is of the label 1
        own = (
            [int(label == labels[1]) for label in truth],
            [int(text == labels[1]) for text in answers.texts],
        )
        assert found["f1"] == pytest.approx(f1_score(*own, zero_division=0))
    else:
        assert "f1" not in found
    # Length normalisation by hand: the likeliest label per byte.
    per_byte = [
        choices[int(np.argmax([x / len(c) for x, c in zip(values, choices, strict=True)]))]
        for values in answers.columns["log_likelihoods"]
    ]
    assert found["accuracy_normalised"] == pytest.approx(accuracy_score(truth, per_byte))
    usual = baselines.answers("classification", test.rows, [("", label) for label in truth], 0)[
        "majority"
    ]
    assert run.measures(test, usual, "")[0].value() == max(Counter(truth).values()) / len(truth)


def test_squad_questions_with_their_own_answers_score_1_and_the_sliding_window_what_is_published(
    data_dir: Path, tmp_path: Path
) -> None:
    path = str(data_dir / "squad/dev-v1.1.json")
    test, records = test_set(
        tmp_path, "squad", "question_answering", paths=[path], max_documents=1500
    )
    references = {record["id"]: record["answers"] for record in records}
    for place in (0, -1):  # the first, and the last of the annotators
        given = [references[row["id"]][place] for row in test.rows]
        exact, f1 = run.measures(test, given, "")[:2]
        assert (exact.value(), f1.value()) == (1.0, 1.0)
    window = baselines.answers("question_answering", test.rows, [], 0)["sliding_window"]
    f1 = run.measures(test, window, "")[1].value()
    assert 0.1 < f1 < 0.4, (
        "20.2 for constituents in Rajpurkar et al. 2016, table 5; whole sentences here"
    )


def test_squad_v2_without_any_answer_scores_the_share_of_unanswerable_questions(
    data_dir: Path, tmp_path: Path
) -> None:
    path = data_dir / "squad/train-v2.0.sample.json"
    _, records = test_set(tmp_path, "squad2", "question_answering", paths=[str(path)])
    task = tasks.get("question_answering")
    test = TestSet(
        "squad2", "question_answering", [{"references": task.references(r), **r} for r in records]
    )
    impossible = {
        question["id"]
        for article in json.loads(path.read_text(encoding="utf-8"))["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
        if question["is_impossible"]
    }
    assert {record["id"] for record in records if not record["answers"]} == impossible
    share = np.mean([row["id"] in impossible for row in test.rows])
    assert 0 < share < 1
    for nothing in ("", "unanswerable", "Unanswerable."):
        exact, f1 = run.measures(test, [nothing] * len(test.rows), "")[:2]
        assert exact.value() == f1.value() == pytest.approx(share)
    right = [row["references"][0] for row in test.rows]
    assert run.measures(test, right, "")[0].value() == 1.0
    labels = sorted({task.label(record) for record in records})
    assert all(
        "unanswerable" in prompt
        for prompt in task.templates(task.fields(records[0], labels), labels)
    )


def test_alpaca_instructions_are_answered_and_scored(data_dir: Path, tmp_path: Path) -> None:
    path = str(data_dir / "alpaca/instruction-data_rasbt.json")
    test, _ = test_set(tmp_path, "alpaca", "instructions", paths=[path])
    found = {
        m.name: m.value()
        for m in run.measures(test, [row["references"][0] for row in test.rows], "")
    }
    assert found["rougeLsum"] == pytest.approx(1.0, abs=0.05), (
        "answers without letters have no ROUGE"
    )
    assert found["bleu"] == pytest.approx(100.0)

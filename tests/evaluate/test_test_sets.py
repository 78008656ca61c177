"""Test sets and training text are read as the mixture writes them; broken ones say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.errors import UserError
from llm.evaluate import test_sets

ROW = {"prompt": "p", "references": ["r"], "kind": "question_answering", "truncated": False}
QA = {**ROW, "context": "The context.", "question": "Why?"}
LABELLED = {**ROW, "kind": "classification", "text": "t", "choices": ["a", "b"], "label": "a"}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(
        pa.Table.from_pylist([{"id": str(i), **row} for i, row in enumerate(rows)]), path
    )
    return path


def test_the_first_examples_are_read_in_the_order_of_the_file(tmp_path: Path) -> None:
    write(tmp_path / "squad.parquet", [QA] * 5000)
    write(tmp_path / "labels.parquet", [LABELLED] * 3)
    labels, squad = test_sets.read_tests(tmp_path, 2000)
    assert (labels.name, labels.kind, len(labels.rows)) == ("labels", "classification", 3)
    assert [row["id"] for row in squad.rows] == [str(i) for i in range(2000)]
    assert len(test_sets.read_tests(tmp_path, None)[1].rows) == 5000


def test_the_texts_of_an_example_are_its_input_and_references_and_not_its_prompt_or_label(
    tmp_path: Path,
) -> None:
    write(tmp_path / "squad.parquet", [QA])
    write(tmp_path / "labels.parquet", [LABELLED])
    labels, squad = test_sets.read_tests(tmp_path, None)
    assert list(squad.texts()) == [["The context.", "Why?", "r"]]
    assert list(labels.texts()) == [["t"]]


def test_missing_references_are_no_references(tmp_path: Path) -> None:
    write(
        tmp_path / "squad.parquet", [QA, {**QA, "references": None}, {**QA, "references": [None]}]
    )
    assert [row["references"] for row in test_sets.read_tests(tmp_path, None)[0].rows] == [
        ["r"],
        [],
        [""],
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**QA, "kind": "poetry"}], "kind is 'poetry'; expected one of classification"),
        ([ROW], "no column context, question, which question_answering needs"),
        ([{**LABELLED, "choices": []}], "an example has no choices"),
    ],
)
def test_a_wrong_test_set_is_named(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    write(tmp_path / "task.parquet", rows)
    with pytest.raises(UserError, match=f"task.parquet: {message}"):
        test_sets.read_tests(tmp_path, None)


def test_missing_empty_and_truncated_files_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no test sets"):
        test_sets.read_tests(tmp_path, None)
    path = tmp_path / "task.parquet"
    pq.write_table(pa.Table.from_pylist([{"id": "1", **QA}]).slice(0, 0), path)
    with pytest.raises(UserError, match="has no examples"):
        test_sets.read_tests(tmp_path, None)
    whole = write(path, [QA] * 100).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        test_sets.read_tests(tmp_path, None)
    with pytest.raises(UserError, match="no such file"):
        list(test_sets.train_texts(tmp_path / "train.parquet"))
    with pytest.raises(UserError, match="no column prompt, response"):
        list(test_sets.train_texts(write(path, [{"text": "t"}])))


def test_training_examples_are_those_of_the_task(tmp_path: Path) -> None:
    rows = [
        {"task": "qa" if i % 2 else "other", "prompt": f"p{i}", "response": f"r{i}"}
        for i in range(3000)
    ]
    path = write(tmp_path / "train.parquet", rows)
    assert test_sets.train_examples(path, "qa", 2) == [("p1", "r1"), ("p3", "r3")]
    assert len(test_sets.train_examples(path, "qa", 10**6)) == 1500
    assert next(test_sets.train_texts(path)) == "p0\nr0"
    assert test_sets.train_examples(path, "absent", 5) == []


def test_predictions_are_the_same_bytes_twice(tmp_path: Path) -> None:
    rows = [{"id": "1", **QA}, {"id": "2", **QA}]
    for name in ("a", "b"):
        test_sets.write_predictions(tmp_path / name, rows, ["x", ""], {"f1": [0.5, 0.0]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    table = pq.read_table(tmp_path / "a")
    assert table.column_names == ["id", "prompt", "prediction", "references", "f1"]

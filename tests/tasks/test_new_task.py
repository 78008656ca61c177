"""A new kind of task is a file and an entry in params: the one in docs/EVALUATION.md, from records
to scores.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from llm import params, tasks
from llm.errors import UserError
from llm.evaluate import answers as run
from llm.evaluate import baselines, test_sets
from llm.evaluate.scorebook import ScoreBook
from llm.sources import datasets, download
from llm.tasks import splits
from llm.tokenizer.bpe import Tokenizer
from stages import mix
from tests.conftest import ROOT
from tests.model.conftest import random_model

SENTENCES = [
    f"The apparatus of room {i} was utilised by person number {i} on the premises."
    for i in range(60)
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that Python reads as a part of llm/tasks."""
    path = tmp_path / "tasks"
    path.mkdir()
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(path)])
    before = set(sys.modules)
    yield path
    for name in set(sys.modules) - before:
        if name.startswith("llm.tasks."):
            del sys.modules[name]
            delattr(tasks, name.rsplit(".", 1)[1])


def documented() -> str:
    text = (ROOT / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return str(code)


def test_the_documented_task_goes_from_records_to_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "rewriting.py").write_text(documented(), encoding="utf-8")
    assert "rewriting" in tasks.kinds()
    monkeypatch.chdir(tmp_path)
    rows = [
        {"id": str(i), "sentence": text, "plain": f"Person {i} used it."}
        for i, text in enumerate(SENTENCES)
    ]
    Path("pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    values = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    values["download"] = {
        "pretrain": {"source": "docs"},
        "rewriting": {"source": "files", "paths": ["pairs.jsonl"]},
    }
    values["mix"] |= {
        "tasks": {"rewriting": {"weight": 1.0}},
        "pretrain_fraction": 0.0,
        "examples": 100,
        "val_fraction": 0.2,
    }
    values["tokenize"]["clean"]["decontaminate"] = False  # no pretraining text here
    Path("params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")

    manifest = download.write_raw(
        "rewriting", "rewriting", params.load().download["rewriting"], Path("data/raw/rewriting")
    )
    assert (manifest["kind"], manifest["rows"]) == ("rewriting", 60)
    (found,) = datasets.read(mix.RAW, params.load().mix)
    texts = list(datasets.held_out_texts([found]))
    held_out = found.survey.count(splits.TEST) + found.survey.count(splits.VALIDATION)
    assert len(texts) == 2 * held_out > 0
    assert set(texts) <= {text for row in rows for text in (row["sentence"], row["plain"])}
    tokenizer = Tokenizer.train(SENTENCES, 350)
    tokenizer.save("data/tokenizer")
    mix.main()
    train = pq.read_table("data/mix/train.parquet").to_pylist()
    assert {row["task"] for row in train} == {"rewriting"}
    assert all("lain words" in row["prompt"] for row in train)

    (test,) = test_sets.read_tests(Path("data/mix/test"), None)
    model = random_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    answers = run.answer(model, tokenizer, test, run.Asking(chat=True))
    assert "at most 48 tokens" in answers.form
    book = ScoreBook(tmp_path, 100, 0.95, 0)
    book.answers("finetuned", test, answers)
    examples = test_sets.train_examples(Path("data/mix/train.parquet"), "rewriting", 100)
    for name, texts in baselines.answers(test.kind, test.rows, examples, 0).items():
        book.answers(f"baseline:{name}", test, run.Answers(texts, {}, [], ""))
    assert set(book.results) == {
        "finetuned",
        "baseline:copy",
        "baseline:majority",
        "baseline:random",
    }
    assert {"rougeLsum", "bleu", "copied", "mean_length"} <= set(
        book.results["finetuned"]["rewriting"]
    )
    assert "rouge1" not in book.results["finetuned"]["rewriting"], (
        "only the metrics that the task names"
    )
    assert book.results["baseline:copy"]["rewriting"]["copied"]["value"] == 1.0
    assert next(iter(test.texts())) == [test.rows[0]["sentence"], *test.rows[0]["references"]]
    assert len(documented().splitlines()) <= 35


def test_a_task_file_that_lacks_something_says_what(folder: Path) -> None:
    source = "from llm.tasks.base import Task\nclass Half(Task):\n    COLUMNS = ('text',)\n    METRICS = ()\n"
    (folder / "half.py").write_text(source, encoding="utf-8")
    with pytest.raises(
        UserError, match=r"half\.py: a kind of task needs CUT, RESPONSE_TOKENS, .*, target\."
    ):
        tasks.get("half")


@pytest.mark.parametrize(
    ("line", "by", "message"),
    [
        ("TEMPLATES = (", 'TEMPLATES = ("Say it in plain words.", ', r"words\.' lacks \{sentence\}"),
        ("TEMPLATES = (", 'TEMPLATES = ("{sentence} {tone}", ', r"names tone; the fields are sentence"),
        ("TEMPLATES = (", 'TEMPLATES = ("{sentence} {", ', r"cannot be filled .*braces"),
        ("CUT = ", 'EXTRACTIVE = "text"; CUT = ', r"lacks \{text\}"),
        ("CUT = ", 'EXTRACTIVE = "sentence"; CLOSED = True; CUT = ', r"in a task without CLOSED"),
    ],
)  # fmt: skip
def test_a_template_without_a_field_that_the_answer_depends_on_is_refused(
    folder: Path, line: str, by: str, message: str
) -> None:
    (folder / "rewriting.py").write_text(documented().replace(line, by, 1), encoding="utf-8")
    with pytest.raises(UserError, match=rf"rewriting\.py: .*{message}"):
        tasks.get("rewriting")


def test_a_column_that_no_answer_depends_on_may_be_left_out_of_the_templates(folder: Path) -> None:
    source = documented().replace("pa.string()}", 'pa.string(), "kind_of_text": pa.string()}', 1)
    (folder / "rewriting.py").write_text(source, encoding="utf-8")
    with pytest.raises(UserError, match=r"lacks \{kind_of_text\}.* leave it out of SHOWN"):
        tasks.get("rewriting")
    source = source.replace("CUT = ", 'SHOWN = ("sentence",); CUT = ', 1)
    (folder / "rewriting_too.py").write_text(source, encoding="utf-8")
    assert tasks.get("rewriting_too").SHOWN == ("sentence",)


def test_a_task_of_ones_own_may_be_extractive(folder: Path, tmp_path: Path) -> None:
    source = documented().replace("CUT = ", 'EXTRACTIVE = "sentence"; CUT = ', 1)
    (folder / "rewriting.py").write_text(source, encoding="utf-8")
    tokenizer, text = Tokenizer.train(SENTENCES, 350), SENTENCES[0]
    row = {"id": "1", "prompt": text, "sentence": text, "references": ["x"], "truncated": False}
    test = test_sets.TestSet("mine", "rewriting", [row])
    model = random_model(vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    answers = run.answer(model, tokenizer, test, run.Asking(chat=True))
    assert answers.texts[0] in text
    assert "greedy, spans of sentence, at most 48 tokens" in answers.form


def test_a_misspelt_kind_of_a_data_set_is_refused_with_the_new_one_among_the_known(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "rewriting.py").write_text(documented(), encoding="utf-8")
    with pytest.raises(UserError, match=r"kind 'rewritten' is unknown; expected .*rewriting"):
        download.write_raw(
            "mine", "rewritten", params.FilesSource(source="files", paths=["x"]), tmp_path / "out"
        )

"""The mix stage: its files, its promises, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llm.errors import UserError
from llm.runtime.io import write_json
from llm.tasks.splits import normalise
from llm.text.hashing import is_validation
from llm.tokenizer.bpe import Tokenizer
from stages import mix

ROOT = Path(__file__).parents[2]
WORDS = [
    "array",
    "table",
    "value",
    "index",
    "column",
    "shape",
    "type",
    "zeros",
    "graph",
    "node",
    "edge",
    "matrix",
]
LABELS = ["numpy", "pandas", "scipy"]
LIST = pa.list_(pa.string())
MAX_TOKENS = 96


def sentences(rng: random.Random, n: int) -> str:
    return " ".join(
        f"The {rng.choice(WORDS)} holds a {rng.choice(WORDS)} of the {rng.choice(WORDS)}."
        for _ in range(n)
    )


def raw_records() -> dict[str, list[dict]]:
    """Small records of all kinds, some far too long, in 40 groups."""
    rng = random.Random(0)
    out: dict[str, list[dict]] = {name: [] for name in ("pretrain", *TASKS)}
    for i in range(240):
        base = {"id": f"r{i}", "group": f"module{i % 40}", "split": ""}
        text = sentences(rng, rng.choice([2, 3, 60])) + f" Number {i}."
        out["pretrain"].append({"id": f"p{i}", "text": text * 3, "source": "test", "group": ""})
        out["summarization"].append({**base, "document": text, "summary": f"Number {i}."})
        answers = rng.choice([[], [f"{i}"], ["The"]])
        out["question_answering"].append(
            {**base, "context": text, "question": "Which number?", "answers": answers}
        )
        out["topic"].append({**base, "text": text, "text_pair": None, "label": LABELS[i % 3]})
        out["instructions"].append(
            {**base, "instruction": f"Count to {i}.", "input": "", "output": f"{i}"}
        )
    return out


TASKS = {
    "summarization": {"weight": 2.0},
    "question_answering": {"weight": 1.0},
    "topic": {"weight": 1.0, "kind": "classification"},
    "instructions": {"weight": 0.0},
}


def write_raw(directory: Path, records: list[dict]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, LIST if name == "answers" else pa.string()) for name in records[0]])
    half = len(records) // 2
    for i, part in enumerate((records[:half], records[half:])):
        pq.write_table(
            pa.Table.from_pylist(part, schema=schema), directory / f"part-{i:05d}.parquet"
        )


def set_params(path: Path, **changed) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["mix"] |= {
        "tasks": TASKS,
        "examples": 120,
        "max_tokens": MAX_TOKENS,
        "val_fraction": 0.15,
    }
    params["mix"] |= {"pretrain_fraction": 0.1} | changed
    params["tokenize"]["clean"]["decontaminate"] = False  # tests/stages/test_clean_stages.py
    params["mix"]["tasks"] = tasks = {
        name: dict(task) for name, task in params["mix"]["tasks"].items()
    }
    for name, task in tasks.items():  # the manifest of a data set says of which kind it is
        write_json(path / "data/raw" / name / "manifest.json", {"kind": task.pop("kind", name)})
    params["download"] = {name: {"source": "docs"} for name in ("pretrain", *tasks)}
    (path / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def digests(path: Path) -> dict[str, str]:
    files = [*(path / "data/mix").rglob("*"), path / "metrics/mix.json"]
    return {
        str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if f.is_file()
    }


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    records = raw_records()
    for name, rows in records.items():
        write_raw(tmp_path / "data/raw" / name, rows)
    Tokenizer.train((r["text"] for r in records["pretrain"]), 500).save(tmp_path / "data/tokenizer")
    (tmp_path / "data/tokens").mkdir()
    (tmp_path / "data/tokens/meta.json").write_text('{"val_fraction": 0.25}', encoding="utf-8")
    set_params(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_files_hold_what_the_contract_says(workspace):
    mix.main()
    tokenizer = Tokenizer.load("data/tokenizer")
    metrics = json.loads(Path("metrics/mix.json").read_text(encoding="utf-8"))
    tables = {name: pq.read_table(f"data/mix/{name}.parquet") for name in ("train", "val")}
    for table in tables.values():
        assert table.column_names == ["id", "task", "prompt", "response"]
        for row in table.to_pylist():
            ids = tokenizer.chat_ids(row["prompt"]) if row["prompt"] else []
            encode = tokenizer.response_ids if row["prompt"] else tokenizer.encode
            assert len(ids) + len(encode(row["response"])) + 1 <= MAX_TOKENS
            assert (row["prompt"] == "") == (row["task"] == "language_modeling")
            assert row["response"]
    counts = {name: table["task"].to_pylist() for name, table in tables.items()}
    for name, entry in metrics["tasks"].items():
        assert counts["train"].count(name) == entry["train"]
        assert counts["val"].count(name) == entry["val"]
    assert counts["train"].count("summarization") == 60
    assert counts["train"].count("question_answering") == counts["train"].count("topic") == 30
    assert counts["train"].count("instructions") == 0
    assert counts["train"].count("language_modeling") == 13  # a tenth of 133
    assert metrics["train"] == tables["train"].num_rows
    assert metrics["val"] == tables["val"].num_rows > 0
    assert metrics["tasks"]["topic"]["kind"] == "classification"
    assert metrics["tasks"]["question_answering"]["dropped"]["answer_cut"] > 0
    assert metrics["tasks"]["question_answering"]["test_answer_cut"] > 0
    assert metrics["tasks"]["summarization"]["truncated"] > 0

    extra = {
        "summarization": ["document"],
        "question_answering": ["context", "question"],
        "topic": ["text", "choices", "label"],
        "instructions": ["instruction", "input"],
    }
    assert sorted(p.stem for p in Path("data/mix/test").iterdir()) == sorted(extra)
    for name, columns in extra.items():
        table = pq.read_table(f"data/mix/test/{name}.parquet")
        assert table.column_names == ["id", "kind", "prompt", "references", "truncated", *columns]
        assert table.num_rows == metrics["tasks"][name]["test"] > 0
        assert sum(table["truncated"].to_pylist()) == metrics["tasks"][name]["test_truncated"]
        assert all(table["references"].to_pylist())
        assert all(
            len(tokenizer.chat_ids(prompt)) <= MAX_TOKENS for prompt in table["prompt"].to_pylist()
        )
    topics = pq.read_table("data/mix/test/topic.parquet").to_pylist()
    assert all(row["choices"] == LABELS and row["references"] == [row["label"]] for row in topics)
    answers = pq.read_table("data/mix/test/question_answering.parquet").to_pylist()
    assert ["unanswerable"] in [row["references"] for row in answers]


def test_no_group_and_no_text_of_the_test_files_is_trained_on(workspace):
    mix.main()
    train = pq.read_table("data/mix/train.parquet").to_pylist()
    val = pq.read_table("data/mix/val.parquet").to_pylist()
    records = {name: {r["id"]: r for r in rows} for name, rows in raw_records().items()}
    groups = {side: set() for side in ("train", "val", "test")}
    texts = {side: set() for side in ("train", "val", "test")}
    for side, rows in (("train", train), ("val", val)):
        for row in rows:
            if row["task"] == "language_modeling":
                text = records["pretrain"][row["id"].split("#")[0]]["text"]
                assert is_validation(text, 0.25) == (side == "val")
            else:
                record = records[row["task"]][row["id"]]
                groups[side].add(record["group"])
                texts[side].add((row["task"], normalise(row["prompt"])))
    for path in Path("data/mix/test").iterdir():
        for row in pq.read_table(path).to_pylist():
            groups["test"].add(records[path.stem][row["id"]]["group"])
            texts["test"].add((path.stem, normalise(row["prompt"])))
    for sides in (groups, texts):
        assert all(sides.values())
        assert not sides["train"] & sides["test"]
        assert not sides["val"] & sides["test"]
        assert not sides["train"] & sides["val"]


def test_the_same_input_gives_the_same_bytes_and_the_seed_changes_the_draw_but_not_the_test(
    workspace,
):
    mix.main()
    first = digests(workspace)
    mix.main()
    assert digests(workspace) == first
    command = [sys.executable, "-m", "stages.mix"]
    subprocess.run(
        command,
        check=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7"},
        capture_output=True,
    )
    assert digests(workspace) == first
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    Path("params.yaml").write_text(yaml.safe_dump({**params, "seed": 7}), encoding="utf-8")
    mix.main()
    second = digests(workspace)
    assert second["data/mix/train.parquet"] != first["data/mix/train.parquet"]
    assert {k: v for k, v in second.items() if "/test/" in k} == {
        k: v for k, v in first.items() if "/test/" in k
    }


def test_the_stage_works_without_importing_torch(workspace):
    code = "import sys; from stages import mix; mix.main(); sys.exit('torch' in sys.modules)"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)}, capture_output=True
    )


def test_without_plain_text_the_pretraining_files_are_not_needed(workspace):
    set_params(workspace, pretrain_fraction=0.0)
    Path("data/tokens/meta.json").unlink()
    mix.main()
    assert "language_modeling" not in pq.read_table("data/mix/train.parquet")["task"].to_pylist()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"tasks": {"topic": {"weight": 1.0}}},
            "'topic' is not a kind of task; known: classification",
        ),
        (
            {"tasks": {"topic": {"weight": 1.0, "kind": "summarization"}}},
            "has no column document, summary",
        ),
        ({"tasks": {"summarization": {"weight": 0.0}}}, "no task has a weight"),
        (
            {
                "tasks": {
                    "summarization": {"weight": 1e-9},
                    "topic": {"weight": 1.0, "kind": "classification"},
                }
            },
            "mix.tasks.summarization: no training example is left",
        ),
    ],
)
def test_impossible_mixtures_are_refused_with_the_remedy_and_the_old_files_stay(
    workspace, changed, message
):
    mix.main()
    before = digests(workspace)
    set_params(workspace, examples=20, **changed)
    with pytest.raises(UserError, match=message):
        mix.main()
    assert digests(workspace) == before


def test_a_task_all_of_whose_examples_are_too_long_is_refused_with_the_reasons(workspace):
    rows = raw_records()["instructions"]
    write_raw(
        Path("data/raw/instructions"),
        [{**r, "instruction": f"{r['instruction']} please" * 99} for r in rows],
    )
    set_params(workspace, tasks={"instructions": {"weight": 1.0}})
    with pytest.raises(
        UserError, match=r"instructions: no training example is left \(dropped: \d+ too_long\)"
    ):
        mix.main()


def test_the_test_set_of_a_task_is_held_out_of_another_of_its_kind(workspace, capsys):
    """SQuAD 1.1 and 2.0 ask of the same paragraphs."""
    rows = raw_records()["question_answering"]
    own = [{**row, "split": "test" if i % 40 < 4 else "train"} for i, row in enumerate(rows)]
    write_raw(Path("data/raw/squad"), own)
    # The second task has the same paragraphs under other titles, and a test side of its own.
    other = [{**row, "group": f"article {i % 40}"} for i, row in enumerate(rows)]
    other = [
        {**row, "split": "test" if 4 <= i % 40 < 8 else "train"} for i, row in enumerate(other)
    ]
    write_raw(Path("data/raw/squad2"), other)
    kinds = {name: {"weight": 1.0, "kind": "question_answering"} for name in ("squad", "squad2")}
    set_params(workspace, tasks=kinds, examples=10**6, pretrain_fraction=0.0)
    mix.main()
    tested = {
        name: {row["context"] for row in pq.read_table(f"data/mix/test/{name}.parquet").to_pylist()}
        for name in kinds
    }
    assert all(tested.values())
    by_id = {row["id"]: row["context"] for row in rows}
    for side in ("train", "val"):
        trained = {
            by_id[row["id"]] for row in pq.read_table(f"data/mix/{side}.parquet").to_pylist()
        }
        assert trained
        assert not trained & (tested["squad"] | tested["squad2"])
    metrics = json.loads(Path("metrics/mix.json").read_text(encoding="utf-8"))["tasks"]
    assert metrics["squad"]["dropped"]["text_in_test_of_squad2"] > 0
    assert metrics["squad2"]["dropped"]["text_in_test_of_squad"] > 0
    assert "squad2: left out, because another task tests with the same: " in capsys.readouterr().out


def test_a_task_that_is_not_validated_is_named_with_the_remedy(workspace, capsys):
    rows = raw_records()["summarization"]
    sides = (["train", "test"][i % 2] for i in range(len(rows)))  # each a single group
    write_raw(
        Path("data/raw/summarization"),
        [{**r, "group": s, "split": s} for r, s in zip(rows, sides, strict=True)],
    )
    set_params(workspace)
    mix.main()
    out = capsys.readouterr().out
    assert "summarization: no validation example" in out
    assert "download.summarization val_paths" in out
    assert "question_answering: no validation" not in out
    set_params(workspace, tasks={"summarization": {"weight": 1.0}}, pretrain_fraction=0.0)
    with pytest.raises(UserError, match=r"no validation example in any task; .*val_paths"):
        mix.main()


def test_the_positive_class_of_a_data_set_is_in_its_test_file(workspace):
    rows = raw_records()["topic"]
    write_raw(
        Path("data/raw/topic"), [{**r, "label": ["no", "yes"][i % 2]} for i, r in enumerate(rows)]
    )
    set_params(workspace)
    write_json("data/raw/topic/manifest.json", {"kind": "classification", "positive_label": "yes"})
    mix.main()
    table = pq.read_table("data/mix/test/topic.parquet")
    assert set(table["positive"].to_pylist()) == {"yes"}
    assert "positive" not in pq.read_table("data/mix/test/summarization.parquet").column_names

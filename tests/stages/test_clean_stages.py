"""Cleaning in the stages: what tokenize leaves out is counted and shown, and mix does not bring it
back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from llm.data.shards import TokenStream
from llm.evaluate.contamination import Contamination
from llm.runtime.io import sha256
from llm.sources import raw
from llm.tokenizer.bpe import Tokenizer
from stages import mix, tokenize

ROOT = Path(__file__).parents[2]
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RULES: dict[str, Any] = {
    "whitespace": True,
    "personal_data": {"email": True},
    "min_characters": 30,
    "decontaminate": True,
    "exact_duplicates": True,
    "near_duplicates": {"threshold": 0.8, "num_perm": 64, "ngram": 3},
    "duplicate_paragraphs": 20,
}


def document(i: int) -> str:
    spelled = [NUMBERS[int(digit)] for digit in f"{i * 7919:06d}{i * 104729:07d}"]
    return f"Document {' '.join(spelled)} speaks of {spelled[1]} and {spelled[3]} and of itself, number {i}, at length."


def task(i: int) -> dict[str, Any]:
    body = " ".join(f"k{i}x{j}" for j in range(25))
    return {
        "id": f"s{i}",
        "document": f"The text {body} ends here.",
        "summary": f"k{i}",
        "group": f"g{i}",
        "split": "",
    }


def workspace(folder: Path, clean: dict[str, Any]) -> list[str]:
    """Raw records and params.yaml in `folder`; returns the pretraining documents."""
    tasks = [task(i) for i in range(60)]
    texts = [document(i) for i in range(300)]
    texts += [f"Quoted in full: {record['document']}" for record in tasks]
    texts += [
        texts[5],
        texts[6].replace("at length", "at great length"),
        "short",
        "Mail me at jane@example.org, number 9, do.",
    ]
    texts += [f"A line of everybody, said again.\r\n\r\n{document(400 + i)}" for i in range(5)]
    for name, kind, records in (
        (
            "pretrain",
            "pretrain",
            [
                {"id": f"p{i}", "text": text, "source": "t", "group": ""}
                for i, text in enumerate(texts)
            ],
        ),
        ("summarization", "summarization", tasks),
    ):
        with raw.Writer(folder / "data/raw" / name, kind, group_bytes=4000) as writer:
            for record in records:
                writer.write(record)
        manifest = {"name": name, "kind": kind, "rows": len(records), "bytes": writer.bytes}
        (folder / "data/raw" / name / "manifest.json").write_text(json.dumps(manifest))
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["tokenize"] |= {"vocab_size": 400, "val_fraction": 0.1, "clean": clean}
    params["pretrain"] |= {"sequence_length": 64, "batch_tokens": 256}
    params["download"] = {name: {"source": "docs"} for name in ("pretrain", "summarization")}
    params["mix"] |= {
        "tasks": {"summarization": {"weight": 1.0}},
        "examples": 40,
        "pretrain_fraction": 0.5,
        "test_fraction": 0.2,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return texts


def decoded(*splits: str) -> list[str]:
    tokenizer = Tokenizer.load("data/tokenizer")
    return [
        tokenizer.decode(ids.tolist())
        for split in splits
        for ids in TokenStream("data/tokens", split).documents_ids()
    ]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_the_rules_take_out_is_not_trained_on_and_every_document_is_accounted_for(
    here: Path,
) -> None:
    texts = workspace(here, RULES)
    tokenize.main()
    metrics = json.loads(Path("metrics/tokenize.json").read_text())
    clean, rules = metrics["clean"], metrics["clean"]["rules"]
    removed = {name: rule["removed"] for name, rule in rules.items() if rule["removed"]}
    assert removed["min_characters"] == 1
    assert removed["exact_duplicates"] == 1
    assert removed["near_duplicates"] == 1
    assert 5 <= removed["decontaminate"] <= 25
    assert rules["personal_data.email"]["changed"] == 1
    assert rules["duplicate_paragraphs"]["edits"] == 4
    assert clean["documents"] == len(texts) == clean["kept"] + sum(removed.values())
    assert clean["kept"] == metrics["train_documents"] + metrics["val_documents"]
    assert clean["kept_bytes"] == metrics["train_bytes"] + metrics["val_bytes"]
    assert all(len(rule["examples"]) <= 5 for rule in rules.values())
    found, trained = decoded("train", "val"), decoded("train")
    assert sum("said again" in text for text in found) == 1
    assert not any("jane" in text or "\r" in text for text in found)

    mix.main()
    check = Contamination()
    for row in pq.read_table("data/mix/test/summarization.parquet").to_pylist():
        check.add_example("s", [row["document"]])
    for text in decoded("val"):
        check.add_example("language_modeling", [text])
    for text in trained:
        check.scan(text)
    chunks = pq.read_table("data/mix/train.parquet").to_pylist()
    plain = [row["response"] for row in chunks if row["task"] == "language_modeling"]
    assert len(plain) > 10
    for text in plain:
        check.scan(text, "finetuning")
    for row in chunks:
        check.scan(f"{row['prompt']}\n{row['response']}", "finetuning")
    assert check.fractions() == {"language_modeling": 0.0, "s": 0.0}
    assert all(any(text in document for document in found) for text in plain)


def test_cleaning_gives_the_same_bytes_with_one_process_and_with_two(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for workers in (1, 2):
        folder = here / str(workers)
        folder.mkdir()
        workspace(folder, RULES)
        monkeypatch.chdir(folder)
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=workers: set(range(n)))
        tokenize.main()
        files = [
            path for path in folder.rglob("*") if path.is_file() and "timing" not in path.parts
        ]
        written.append({str(path.relative_to(folder)): sha256(path) for path in files})
    assert written[0] == written[1]
    assert "data/tokens/clean/removed.npy" in written[0]


def test_with_every_rule_off_the_stage_writes_what_it_wrote_before(here: Path) -> None:
    texts = workspace(here, {})
    tokenize.main()
    assert sorted(decoded("train", "val")) == sorted(texts)
    assert "clean" not in json.loads(Path("metrics/tokenize.json").read_text())
    assert "clean" not in json.loads(Path("data/tokens/meta.json").read_text())
    assert not Path("data/tokens/clean").exists()

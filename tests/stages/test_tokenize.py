"""The tokenize stage: raw documents in, tokenizer, shards and counts out, with the same bytes every
time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llm.corpus import sample
from llm.data.shards import TokenStream
from llm.errors import UserError
from llm.runtime.io import sha256, write_json
from llm.sources import raw
from llm.text.hashing import is_validation
from llm.tokenizer.bpe import Tokenizer
from stages import tokenize
from tests import warm

ROOT = Path(__file__).parents[2]
TEXT = "the array returns value of axis shape é中 number 2024 <|endoftext|> index's first\n\n    indented"
WORDS = re.split(" ", TEXT)


def documents(count: int = 400) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, size=rng.integers(5, 120))) + f" {i}" for i in range(count)]


def one_task(folder: Path, params: dict) -> None:
    """Records of a small task in data/raw, and the params with no other."""
    with raw.Writer(folder / "data/raw/summarization", "summarization") as writer:
        for i in range(60):
            text = {"document": f"document {i}", "summary": f"summary {i}"}
            writer.write({"id": f"s{i}", "group": f"s{i}", "split": "", **text})
    manifest = {"name": "summarization", "kind": "summarization", "rows": 60, "bytes": writer.bytes}
    write_json(folder / "data/raw/summarization/manifest.json", manifest)
    params["download"] = {
        "pretrain": params["download"]["pretrain"],
        "summarization": {"source": "docs"},
    }
    params["mix"] |= {"tasks": {"summarization": {"weight": 1.0}}, "test_fraction": 0.2}


def workspace(folder: Path, texts: list[str], **changes: object) -> Path:
    """A folder with raw records in two files and params.yaml, `changes` applied to its sections."""
    pretrain = folder / "data" / "raw" / "pretrain"
    pretrain.mkdir(parents=True)
    for number, part in enumerate((texts[: len(texts) // 3], texts[len(texts) // 3 :])):
        columns = {
            "id": [f"{number}-{i}" for i in range(len(part))],
            "text": part,
            "source": ["test"] * len(part),
            "group": [""] * len(part),
        }
        pq.write_table(
            pa.table(columns), pretrain / f"part-{number:05d}.parquet", row_group_size=50
        )
    size = sum(len(text.encode()) for text in texts)
    (pretrain / "manifest.json").write_text(
        json.dumps({"name": "pretrain", "rows": len(texts), "bytes": size})
    )
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["tokenize"] |= {
        "tokenizer": "bpe",
        "vocab_size": 320,
        "val_fraction": 0.1,
        "shard_tokens": 2048,
    }
    params["pretrain"] |= {"sequence_length": 64, "batch_tokens": 256}
    one_task(folder, params)
    for section, values in changes.items():
        params[section] |= values  # type: ignore[operator]
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outputs(folder: Path) -> dict[str, str]:
    paths = [
        *folder.glob("data/tokenizer/*"),
        *(path for path in folder.glob("data/tokens/**/*") if path.is_file()),
        folder / "metrics" / "tokenize.json",
    ]
    return {str(path.relative_to(folder)): sha256(path) for path in paths}


def test_every_document_is_written_once_to_the_side_of_its_hash(here: Path) -> None:
    texts = documents()
    workspace(here, texts)
    tokenize.main()
    tokenizer = Tokenizer.load("data/tokenizer")
    for split in ("train", "val"):
        stream = TokenStream("data/tokens", split)
        found = [tokenizer.decode(ids.tolist()) for ids in stream.documents_ids()]
        assert found == [text for text in texts if is_validation(text, 0.1) == (split == "val")]
    assert len(list(here.glob("data/tokens/train-*.npy"))) > 1


def test_metrics_count_what_was_written(here: Path) -> None:
    texts = documents()
    workspace(here, texts)
    tokenize.main()
    metrics = json.loads(Path("metrics/tokenize.json").read_text())
    tokenizer = Tokenizer.load("data/tokenizer")
    ids = [[*tokenizer.encode(text), tokenizer.eos_id] for text in texts]
    train = [x for x, text in zip(ids, texts, strict=True) if not is_validation(text, 0.1)]
    assert (metrics["train_tokens"], metrics["train_documents"]) == (
        sum(map(len, train)),
        len(train),
    )
    assert metrics["train_documents"] + metrics["val_documents"] == len(texts)
    assert metrics["vocab_size"] == tokenizer.vocab_size == 320
    assert metrics["bytes_per_token"] == sum(len(text.encode()) for text in texts) / sum(
        map(len, ids)
    )
    assert sum(metrics["document_tokens"].values()) == len(texts)
    for size, count in metrics["document_tokens"].items():
        assert count == sum(int(size) // 2 < len(x) <= int(size) for x in ids)
    counts = Counter(i for x in ids for i in x)
    assert [entry["count"] for entry in metrics["frequent_tokens"]] == [
        n for _, n in counts.most_common(20)
    ]
    assert metrics["unused_tokens"] == 320 - len(counts)
    assert json.loads(Path("metrics/timing/tokenize.json").read_text())["tokens_per_second"] > 0


def test_two_runs_give_the_same_bytes_wherever_they_run(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for name in ("one", "two"):
        monkeypatch.chdir(workspace(here / name, documents()))
        tokenize.main()
        found.append(outputs(here / name))
    assert found[0] == found[1]
    assert len(found[0]) > 6


def test_the_held_out_text_has_no_part_in_the_tokenizer(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = documents()
    other = [text if not is_validation(text, 0.1) else text + " " + "zq" * 50 for text in texts]
    other = [b if is_validation(b, 0.1) or a == b else a for a, b in zip(texts, other, strict=True)]
    assert other != texts
    found = []
    for name, each in (("one", texts), ("two", other)):
        monkeypatch.chdir(workspace(here / name, each))
        tokenize.main()
        found.append(sha256("data/tokenizer/ranks.tiktoken"))
    assert found[0] == found[1]


def test_of_much_text_the_tokenizer_sees_a_share(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace(here, documents())
    seen: list[str] = []
    train = Tokenizer.train
    monkeypatch.setattr(
        Tokenizer, "train", lambda texts, size: train(seen.extend(texts) or seen, size)
    )
    monkeypatch.setattr(sample, "SAMPLE_BYTES", 30_000)
    tokenize.main()
    assert 10_000 < sum(len(text.encode()) for text in seen) < 60_000
    assert not any(is_validation(text, 0.1) for text in seen)


def test_a_small_corpus_gives_a_smaller_vocabulary_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace(here, documents(), tokenize={"vocab_size": 4096})
    tokenize.main()
    size = json.loads(Path("data/tokens/meta.json").read_text())["vocab_size"]
    assert size < 4096
    assert f"{size} tokens, fewer than tokenize.vocab_size=4096" in "".join(capsys.readouterr())


def test_too_little_text_for_one_sequence_is_refused_and_nothing_is_written(here: Path) -> None:
    workspace(here, documents(40), pretrain={"sequence_length": 65536, "batch_tokens": 65536},
              model={"max_position_embeddings": 65536})  # fmt: skip
    with pytest.raises(UserError, match=r"(?s)sequence of 65537.*pretrain\.sequence_length"):
        tokenize.main()
    assert not Path("data/tokens").exists()


def test_an_empty_validation_side_is_refused_with_the_remedy(here: Path) -> None:
    workspace(here, [text for text in documents() if not is_validation(text, 0.1)])
    with pytest.raises(UserError, match=r"val side.*tokenize\.val_fraction"):
        tokenize.main()
    assert not Path("data/tokens").exists()


def test_missing_and_truncated_input_is_named(here: Path) -> None:
    workspace(here, documents())
    path = here / "data/raw/pretrain/part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"part-00001\.parquet.*download"):
        tokenize.main()
    for part in (here / "data/raw/pretrain").iterdir():
        part.unlink()
    with pytest.raises(UserError, match=r"data/raw/pretrain"):
        tokenize.main()


def test_real_text_packs_three_bytes_a_token(here: Path, data_dir: Path) -> None:
    stories = (
        (data_dir / "pretrain" / "TinyStories-train.txt")
        .read_text(encoding="utf-8")
        .split("<|endoftext|>")
    )
    workspace(
        here, [text.strip() for text in stories if text.strip()], tokenize={"vocab_size": 2048}
    )
    tokenize.main()
    assert json.loads(Path("metrics/tokenize.json").read_text())["bytes_per_token"] > 3


def test_a_killed_stage_leaves_no_worker_and_no_half_output_and_continues(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokenize.find_chunks, "__defaults__", (20_000,))
    monkeypatch.setenv("LLM_STATE_SECONDS", "0")
    settings = {"workers": 2, "tokenizer": "bpe"}
    texts = documents(400) * 20
    for name in ("whole", "killed"):
        workspace(here / name, texts, tokenize=settings)
    monkeypatch.setenv("DVC_ROOT", str(here / "killed"))
    code = "from stages import tokenize; tokenize.find_chunks.__defaults__ = (20_000,); tokenize.main()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=here / "killed",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not list((here / "killed").glob(".state/tokenize/*/progress.json")):
        time.sleep(0.01)
        assert child.poll() is None
    workers = psutil.Process(child.pid).children()
    child.kill()
    child.wait()
    assert len(workers) >= 2
    assert not (here / "killed" / "data" / "tokens").exists()
    assert psutil.wait_procs(workers, timeout=120)[1] == []
    monkeypatch.chdir(here / "killed")
    capfd.readouterr()
    tokenize.main()
    assert "resumes after" in capfd.readouterr().out
    assert not list((here / "killed").glob(".state/tokenize/*/")), "finished work is removed"
    monkeypatch.chdir(here / "whole")
    monkeypatch.setattr(tokenize.find_chunks, "__defaults__", (10**9,))
    tokenize.main()
    assert outputs(here / "killed") == outputs(here / "whole")


def test_a_second_run_waits_for_the_first_and_gives_the_same_bytes(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        workspace(here / name, documents(400) * 10)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(here)}
    command = [warm.python(), "-m", "stages.tokenize"]
    runs = [
        subprocess.Popen(
            command, cwd=here / name, env=environment, stdout=subprocess.PIPE, text=True
        )
        for name in ("one", "two")
    ]
    printed = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0]
    assert sum("does the same work; waiting for it" in text for text in printed) <= 1
    assert outputs(here / "one") == outputs(here / "two")
    assert not list(here.glob(".state/tokenize/*/"))


def summaries(count: int, split: str = "", group: str | None = None) -> list[dict]:
    text = {"summary": "a summary"}
    return [
        {
            "id": f"{split}{i}",
            "document": f"{split} document {i}",
            "group": group or f"{split}{i}",
            "split": split,
            **text,
        }
        for i in range(count)
    ]


def labelled(labels: str, split: str) -> list[dict]:
    return [
        {
            "id": f"{split}{i}",
            "text": f"{split} {i}",
            "text_pair": None,
            "label": label,
            "group": f"{split}{i}",
        }
        | {"split": split}
        for i, label in enumerate(labels)
    ]


WRONG = {
    "no test example": ("summarization", summaries(20, "train", "one group"), r"one: no test example among 20 records"),
    "no training example": ("summarization", summaries(20, "test"), r"one: no training example among 20 records"),
    "one label": ("classification", labelled("aaa", "train") + labelled("a", "test"), r"one: .* two labels or more"),
    "other labels": (
        "classification", labelled("aabb", "train") + labelled("cd", "test"),
        r"one: no test example among 6 records \(dropped: 2 label_not_in_train\)",
    ),
    "another kind": ("classification", summaries(20), r"data/raw/one has no column text, text_pair, label"),
    "no such kind": ("sumarization", summaries(20), r"'sumarization' is not a kind .* Did you mean summarization"),
    "no records": ("summarization", None, r"mix.tasks.one: .*data/raw/one has no manifest.json"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_task_is_told_before_anything_is_trained(
    here: Path, wrong: str
) -> None:
    kind, records, message = WRONG[wrong]
    workspace(here, documents())
    set_task(here, kind, records)
    with pytest.raises(UserError, match=message):
        tokenize.main()
    assert not Path("data/tokens").exists()
    assert not Path(".state").exists()


def set_task(folder: Path, kind: str, records: list[dict] | None) -> None:
    """A single task named `one`, of these records."""
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["download"] = {"pretrain": {"source": "docs"}, "one": {"source": "docs", "kind": kind}}
    params["mix"]["tasks"] = {"one": {"weight": 1.0}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    if records is not None:
        (folder / "data/raw/one").mkdir()
        pq.write_table(pa.Table.from_pylist(records), folder / "data/raw/one/part-00000.parquet")
        write_json(folder / "data/raw/one/manifest.json", {"kind": kind})


def test_labels_that_only_the_test_has_are_named_before_anything_is_trained(
    here: Path, capsys: pytest.CaptureFixture
) -> None:
    workspace(here, documents())
    set_task(here, "classification", labelled("aabb" * 20, "train") + labelled("abcd", "test"))
    tokenize.main()
    assert (
        "tokenize: one: 2 records have labels that no training example has, and are left out: 'c', 'd'"
        in capsys.readouterr().out
    )

"""The stage writes metrics/evaluate.json, metrics/scores.csv and the predictions, and twice the
same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from llm.errors import UserError
from llm.evaluate.metric_names import LOWER_IS_BETTER
from llm.model.hf_files import save_model
from llm.runtime.io import sha256, write_json
from llm.sources.raw import Writer
from llm.tokenizer.bpe import Tokenizer
from stages import evaluate
from tests.conftest import ROOT
from tests.model.conftest import random_model
from tests.pipeline.workspace import run
from tests.tokenizer.test_pretrained import write as write_checkpoint

CONTEXT = (
    "The axis argument names the dimension. It is an integer. Negative values count from the end."
)
KINDS: dict[str, dict[str, Any]] = {
    "summarization": {"document": CONTEXT},
    "question_answering": {"context": CONTEXT, "question": "What does axis name?"},
    "classification": {"text": CONTEXT, "choices": ["numpy", "torch"], "label": "numpy"},
    "instructions": {"instruction": "Explain axis.", "input": ""},
}
METRICS = {
    "summarization": {"rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "mean_length"},
    "instructions": {"rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "mean_length"},
    "question_answering": {"exact_match", "f1", "mean_length"},
    "classification": {"accuracy", "mcc", "f1_macro"},
    "language_modeling": {"bits_per_byte"},
}
BASELINES = {
    "summarization": {"lead", "random"},
    "instructions": {"lead"},
    "question_answering": {"random", "sliding_window", "name_match"},
    "classification": {"majority", "random", "tfidf"},
    "language_modeling": {"unigram", "zstd"},
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory as the stages before leave it: two small random models, tokens, a mixture and
    test sets.
    """
    monkeypatch.chdir(tmp_path)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["evaluate"] |= {"bootstrap": 100, "examples": 3, "shots": 1, "variant_examples": 2}
    params["evaluate"]["max_new_tokens"] = dict.fromkeys(KINDS, 4)
    params["tokenize"]["clean"]["decontaminate"] = False  # the shards are made by hand
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(CONTEXT.split(), size=30)) for _ in range(80)]
    tokenizer = Tokenizer.train(texts, 300)
    saved = Path("data/tokenizer")
    saved.mkdir(parents=True)
    tokenizer.save(saved)
    for name in ("base", "finetuned"):
        Path("models", name).mkdir(parents=True)
        model = random_model(seed=len(name), vocab_size=tokenizer.vocab_size)
        save_model(model, Path("models", name), saved, tokenizer.eos_id)
    write_tokens(Path("data/tokens"), tokenizer, {"train": texts[:70], "val": texts[70:]})
    with Writer(
        Path("data/raw/pretrain"), "pretrain"
    ) as writer:  # one held-out document is of no record
        for i, text in enumerate(texts[:79]):
            writer.write({"id": str(i), "text": text, "source": f"source {i % 2}", "group": ""})

    Path("data/mix/test").mkdir(parents=True)
    training = []
    for kind, columns in KINDS.items():
        rows = [
            {"id": f"{kind}{i}", "prompt": f"{CONTEXT} {i}?", "references": ["The dimension."], "kind": kind,
             "truncated": i == 0, **columns}
            for i in range(5)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), f"data/mix/test/{kind}.parquet")
        training += [
            {"id": str(i), "task": kind, "prompt": f"{name} {i}", "response": name}
            for i, name in enumerate(["numpy", "torch", "numpy"])
        ]
    pq.write_table(pa.Table.from_pylist(training), "data/mix/train.parquet")
    return tmp_path


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_tokens(directory: Path, tokenizer: Tokenizer, splits: dict[str, list[str]]) -> None:
    """Shards and meta.json in the form that the tokenize stage writes."""
    directory.mkdir(parents=True)
    meta: dict[str, Any] = {
        "dtype": "uint16",
        "vocab_size": tokenizer.vocab_size,
        "eos_id": tokenizer.eos_id,
        "tokenizer_sha256": sha256("models/base/tokenizer.json"),
        "val_fraction": 0.1,
    }
    for split, texts in splits.items():
        ids = [i for text in texts for i in [*tokenizer.encode(text), tokenizer.eos_id]]
        path = directory / f"{split}-00000.npy"
        np.save(path, np.array(ids, dtype=np.uint16))
        meta[split] = {
            "tokens": len(ids),
            "documents": len(texts),
            "bytes": sum(len(text.encode()) for text in texts),
            "shards": [{"file": path.name, "tokens": len(ids), "sha256": sha256(path)}],
        }
    write_json(directory / "meta.json", meta)


def outputs(directory: Path) -> dict[str, bytes]:
    names = ("comparison.json", "contamination.json", "evaluate.json", "scores.csv")
    paths = [*(directory / name for name in names), *sorted((directory / "predictions").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def test_the_stage_keeps_its_contract_and_its_bytes(
    project: Path, capsys: pytest.CaptureFixture[str], one_thread: None
) -> None:
    evaluate.main()
    printed = capsys.readouterr().out
    results = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    contamination = results.pop("contamination")
    assert set(contamination) == {*KINDS, "language_modeling"}
    assert all(0.0 <= fraction <= 1.0 for fraction in contamination.values())
    apart = json.loads(Path("metrics/contamination.json").read_text(encoding="utf-8"))
    assert list(apart) == ["pretraining", "finetuning"]
    for task, fraction in contamination.items():
        shares = [apart[side][task] for side in apart]
        assert max(shares) <= fraction <= sum(shares)
    for task, metrics in METRICS.items():
        models = {"base", "finetuned", *(f"baseline:{name}" for name in BASELINES[task])}
        models |= {"variant:beams", "variant:sampled"} if "mean_length" in metrics else set()
        assert {model for model in results if task in results[model]} == models
        for model in models:
            assert metrics <= set(results[model][task])
            for score in results[model][task].values():
                assert list(score) == ["value", "low", "high", "n", "signature"]
                assert score["signature"]
                assert score["low"] <= score["value"] + 1e-9
                assert score["value"] <= score["high"] + 1e-9
        assert f"\n{task}" in f"\n{printed}"
    assert results["base"]["question_answering"]["truncated"]["value"] == pytest.approx(1 / 3)
    assert results["base"]["language_modeling"]["perplexity"]["value"] > 1
    assert results["baseline:majority"]["classification"]["accuracy"]["value"] == 1.0

    names = {
        f"{model}-{kind}.parquet"
        for kind in (*KINDS, "language_modeling")
        for model in ("base", "finetuned")
    }
    written = [kind for kind in KINDS if kind != "classification"]
    names |= {f"variant_{name}-{kind}.parquet" for kind in written for name in ("beams", "sampled")}
    names |= {f"baseline_{name}-{kind}.parquet" for kind in KINDS for name in BASELINES[kind]}
    first = outputs(Path("metrics"))
    assert set(first) == names | {
        "comparison.json",
        "contamination.json",
        "evaluate.json",
        "scores.csv",
    }
    by_source = {name for name in results["base"]["language_modeling"] if "/" in name}
    assert by_source == {f"bits_per_byte/{name}" for name in ("source 0", "source 1", "unknown")}
    compared = json.loads(first["comparison.json"])["finetuned - base"]
    assert set(compared) == set(METRICS)
    for task, differences in compared.items():
        for metric, found in differences.items():
            values = [results[model][task][metric]["value"] for model in ("base", "finetuned")]
            assert [found["a"], found["b"]] == values
            assert found["low"] <= found["difference"] <= found["high"]
            assert 0 < found["p_value"] <= 1
    against = json.loads(first["comparison.json"])["finetuned - best baseline"]
    assert set(against) == {*KINDS, "language_modeling"}
    for task, differences in against.items():
        for metric, found in differences.items():
            own = {
                model: results[model][task][metric]["value"]
                for model in results
                if metric in results[model].get(task, {})
            }
            others = [value for model, value in own.items() if model.startswith("baseline:")]
            best = (min if metric in LOWER_IS_BETTER else max)(others)
            assert found["a"] == own[found["baseline"]] == best
            assert found["difference"] == found["b"] - found["a"]
            assert found["b"] == own["finetuned"]
    rows = pq.read_table("metrics/predictions/finetuned-question_answering.parquet").to_pylist()
    assert [row["id"] for row in rows] == [
        "question_answering0",
        "question_answering1",
        "question_answering2",
    ]
    assert {"prompt", "prediction", "references", "exact_match", "f1"} <= set(rows[0])

    shutil.rmtree("metrics")
    again = run(
        *(project, "python", "-m", "stages.evaluate"),
        **{
            "LLM_PROCESSES": "2",
            "LLM_DEVICE": "cpu",
            "PYTHONPATH": str(ROOT),
            "DVC_ROOT": str(project),
        },
    )
    assert outputs(Path("metrics")) == first  # two processes share the questions
    assert again.stdout.count("metrics/evaluate.json") == 1


def test_a_model_that_is_not_there_is_a_user_error_and_leaves_no_half_results(
    project: Path,
) -> None:
    (project / "models/finetuned/model.safetensors").unlink()
    with pytest.raises(UserError, match=r"models/finetuned: no model\.safetensors"):
        evaluate.main()
    assert not (project / "metrics/predictions").exists()
    assert not (project / "metrics/evaluate.json").exists()


def test_a_part_of_a_mixture_is_read_from_every_source(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["evaluate"] |= {"perplexity_tokens": 2000, "variants": {}}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    tokenizer = Tokenizer.load("data/tokenizer")
    val = [f"{CONTEXT[:60]} {i}" for i in range(90)] + [f"{CONTEXT[60:]} {i}" for i in range(30)]
    shutil.rmtree("data/tokens")
    write_tokens(Path("data/tokens"), tokenizer, {"train": [CONTEXT] * 9, "val": val})
    places = np.repeat([0, 1], [90, 30]).astype(np.uint16)
    np.save("data/tokens/val_sources.npy", places)
    meta = json.loads(Path("data/tokens/meta.json").read_text(encoding="utf-8"))
    meta |= {
        "sources": ["first", "second"],
        "val_sources": {"file": "val_sources.npy", "bytes": [0, 0]},
    }
    write_json("data/tokens/meta.json", meta)

    evaluate.main()
    results = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    found = results["base"]["language_modeling"]
    documents = {name: found[f"bits_per_byte/{name}"]["n"] for name in ("first", "second")}
    read = sum(documents.values())
    tokens = [len(tokenizer.encode(text)) + 1 for text in val]
    assert read < 120
    share = sum(tokens[:90]) / sum(tokens)
    expected = {
        "first": 2000 * share / np.mean(tokens[:90]),
        "second": 2000 * (1 - share) / np.mean(tokens[90:]),
    }
    for name, count in documents.items():
        assert count == pytest.approx(expected[name], abs=1.5)
    for model in ("base", "finetuned", "baseline:unigram"):
        assert (
            f"of {read} of 120 held-out documents"
            in results[model]["language_modeling"]["loss"]["signature"]
        )
    zstd = results["baseline:zstd"]["language_modeling"]["bits_per_byte"]
    assert zstd["n"] == read, "baselines are scored on the same documents"
    size = zstd["signature"].split(" documents, ")[1].split("|")[0]
    assert f"{size} of {read} of" in found["loss"]["signature"]


def test_a_chat_model_as_base_is_asked_in_its_own_template(project: Path) -> None:
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    params["evaluate"] |= {"variants": {}, "shots": 0}
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    write_checkpoint(Path("data/tokenizer"), "chatml")
    Path("data/tokenizer/ranks.tiktoken").unlink()
    tokenizer = Tokenizer.load("data/tokenizer")
    model = random_model(vocab_size=tokenizer.vocab_size)
    for name in ("base", "finetuned"):  # the same model: finetuning must not look like a gain
        shutil.rmtree(Path("models", name))
        Path("models", name).mkdir()
        save_model(model, Path("models", name), Path("data/tokenizer"), tokenizer.eos_id)
    shutil.rmtree("data/tokens")
    write_tokens(Path("data/tokens"), tokenizer, {"train": [CONTEXT] * 9, "val": [CONTEXT]})
    evaluate.main()
    results = json.loads(Path("metrics/evaluate.json").read_text(encoding="utf-8"))
    assert results["base"] == results["finetuned"]
    assert "|prompt:chat, 0-shot|" in results["base"]["question_answering"]["f1"]["signature"]

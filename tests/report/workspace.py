"""A workspace as the stages leave it, small and made by hand, for tests of the report and of
tracking.
"""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

REPOSITORY = Path(__file__).parents[2]
TASKS = ("summarization", "question_answering", "classification")


def minimal(directory: Path) -> None:
    """params.yaml alone."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(REPOSITORY / "params.yaml", directory / "params.yaml")


def full(directory: Path, note: str = "prose of docstrings") -> None:
    """Every file that the report reads; `note` is put wherever a dataset's own text is shown."""
    minimal(directory)
    _data(directory, note)
    _model(directory)
    _curves(directory)
    _metrics(directory, note)
    _predictions(directory, note)


def dump(path: Path, value: Any) -> None:
    """Write JSON, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


def _data(directory: Path, note: str) -> None:
    for number, name in enumerate(("pretrain", *TASKS)):
        manifest = {
            "name": name,
            "kind": name,
            "source": {"source": "docs", "packages": None},
            "revision": "numpy==2.4.6, torch==2.13.0, python 3.11.7",
            "licence": "PSF-2.0, BSD-3-Clause and Apache-2.0, by package",
            "rows": 20_866 - 5_000 * number,
            "bytes": 12_400_000 // (number + 1),
            "files": [],
            "kept": {"documents": 20_866 - 5_000 * number},
            "dropped": {"near_duplicate": 1834, "too_short": 912, "not_english": 41},
            "rejected": {"count": 2, "by_reason": {"no text": 2}, "examples": []},
            "notes": note,
        }
        dump(directory / "data" / "raw" / name / "manifest.json", manifest)
    rows = [
        {
            "id": f"{task}-{i}",
            "task": task,
            "prompt": ""
            if task == "language_modeling"
            else f"{note}: what does argument {i} of the function mean?",
            "response": f"The number {i} of points to draw, along the given axis. {note}",
        }
        for i in range(30)
        for task in (*TASKS, "language_modeling")
    ]
    (directory / "data" / "mix").mkdir(parents=True)
    pq.write_table(
        pa.Table.from_pylist(rows), directory / "data" / "mix" / "train.parquet", row_group_size=16
    )
    lock = """schema: '2.0'
stages:
  tokenize:
    cmd: python -m stages.tokenize
    deps:
    - path: llm/tokenizer/bpe.py
      md5: 00000000000000000000000000000000
    - path: data/raw/pretrain
      md5: 3f786850e387550fdab836ed7e6dc881.dir
      size: 12400000
    outs:
    - path: data/tokens
      md5: 89e6c98d92887913cadf06b2adb97f26.dir
      size: 11873292
"""
    (directory / "dvc.lock").write_text(lock, encoding="utf-8")


def _model(directory: Path) -> None:
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 4096,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    dump(directory / "models" / "base" / "config.json", config)


def _curves(directory: Path) -> None:
    (directory / "metrics").mkdir(exist_ok=True)
    for stage, steps, every, start, end in (
        ("pretrain", 732, 100, 8.3, 2.9),
        ("finetune", 96, 50, 3.4, 1.3),
    ):
        with open(
            directory / "metrics" / f"{stage}_history.csv", "w", newline="", encoding="utf-8"
        ) as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(("step", "tokens", "loss", "learning_rate", "grad_norm", "val_loss"))
            for step in range(1, steps + 1):
                loss = (
                    end
                    + (start - end) * math.exp(-5 * step / steps)
                    + 0.12 * math.sin(step * 12.9898)
                )
                rate = 0.01 * min(1, step / 15, 2 * (steps - step + 1) / steps)
                norm = 0.4 + 3 * math.exp(-step / 20) + 0.1 * math.sin(step * 78.233)
                val = loss + 0.05 if step % every == 0 or step == steps else ""
                writer.writerow((step, step * 8192, loss, rate, norm, val))


def _score(value: float, n: int = 300, signature: str = "") -> dict[str, Any]:
    spread = 0.05 * max(value, 0.02)
    return {
        "value": value,
        "low": value - spread,
        "high": value + spread,
        "n": n,
        "signature": signature,
    }


def evaluation() -> dict[str, Any]:
    """What `evaluate` writes."""
    bleu = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0"
    rouge = "rouge-score 0.1.2, stemming, sentences split by newline"

    def summarization(x: float) -> dict[str, Any]:
        return {
            "bleu": _score(x * 30, signature=bleu),
            **{
                f"rouge{k}": _score(x * f, signature=rouge)
                for k, f in (("1", 1.0), ("2", 0.4), ("L", 0.8), ("Lsum", 0.9))
            },
            "mean_length": _score(9.4),
        }

    def answering(x: float) -> dict[str, Any]:
        counts = {"truncated": _score(0.0), "unfinished": _score(0.047), "empty": _score(0.003)}
        return {
            "exact_match": _score(0.6 * x),
            "f1": _score(x),
            "mean_length": _score(5.2),
            **counts,
        }

    return {
        "base": {
            "summarization": summarization(0.07),
            "question_answering": answering(0.03),
            "classification": {"accuracy": _score(0.11), "mcc": _score(0.01)},
            "language_modeling": {
                "perplexity": _score(18.2, 118000),
                "bits_per_byte": _score(1.212, 118000),
            },
        },
        "finetuned": {
            "summarization": summarization(0.31),
            "question_answering": answering(0.61),
            "classification": {"accuracy": _score(0.57), "mcc": _score(0.51)},
            "language_modeling": {
                "perplexity": _score(19.9, 118000),
                "bits_per_byte": _score(1.249, 118000),
                "bits_per_byte/numpy": _score(1.111, 40),
                "bits_per_byte/others": _score(1.777, 20),
            },
        },
        "variant:beams": {
            "question_answering": answering(0.64)
            | {"f1": _score(0.64, 20, "x|beam search, 4 beams, at most 32 tokens|y")}
        },
        "baseline:lead": {"summarization": summarization(0.22)},
        "baseline:random": {
            "question_answering": answering(0.16),
            "summarization": summarization(0.14),
        },
        "baseline:sliding_window": {"question_answering": answering(0.33)},
        "baseline:majority": {"classification": {"accuracy": _score(0.18), "mcc": _score(0.0)}},
        "baseline:tfidf": {"classification": {"accuracy": _score(0.64), "mcc": _score(0.6)}},
        "baseline:zstd": {"language_modeling": {"bits_per_byte": {"value": 1.702, "n": 118000}}},
        "contamination": {
            "summarization": 0.0133,
            "question_answering": 0.0067,
            "classification": 0.0,
        },
    }


def _metrics(directory: Path, note: str) -> None:
    metrics = directory / "metrics"
    last = _last_losses(metrics)
    dump(
        metrics / "tokenize.json",
        {
            "vocab_size": 4096,
            "train_tokens": 3_021_114,
            "val_tokens": 61_204,
            "train_documents": 20_449,
            "val_documents": 417,
            "train_bytes": 12_144_878,
            "val_bytes": 246_040,
            "bytes_per_token": 4.02,
            "unused_tokens": 11,
            "document_tokens": {"32": 910, "64": 2800, "256": 14_156, "2048": 3000},
            "frequent_tokens": [
                {"token": "\n", "count": 181_020},
                {"token": " the", "count": 92_411},
            ],
            "largest_sources": [
                {
                    "source": f"package {note}",
                    "tokens": 2_000_000,
                    "documents": 14_000,
                    "bytes": 8_140_000,
                },
                {"source": "", "tokens": 1_082_318, "documents": 6_866, "bytes": 4_250_918},
            ],
        },
    )
    dump(
        metrics / "pretrain.json",
        {
            "val_loss": last["pretrain"],
            "val_bits_per_byte": 1.2118,
            "val_perplexity": 18.2,
            "parameters": 5_481_728,
            "tokens": 5_996_544,
            "steps": 732,
            "flops": 2.04e14,
            "epochs": 1.98,
        },
    )
    task = {
        "kind": "x",
        "train": 3600,
        "val": 110,
        "test": 371,
        "truncated": 12,
        "dropped": {"empty": 3},
    }
    lengths = {"mean_prompt_tokens": 143.2, "mean_response_tokens": 14.8}
    dump(
        metrics / "mix.json",
        {
            "tasks": {name: {**task, **lengths} for name in TASKS},
            "train": 12_000,
            "val": 330,
            "test": 1113,
        },
    )
    dump(
        metrics / "finetune.json",
        {
            "val_loss": last["finetune"],
            "trainable_parameters": 663_552,
            "trainable_fraction": 0.108,
            "examples": 12_000,
            "steps": 96,
            "val_loss_by_task": dict.fromkeys(TASKS, 1.31),
        },
    )
    dump(metrics / "evaluate.json", evaluation())
    apart = {
        "pretraining": {
            "summarization": 0.0133,
            "question_answering": 0.0033,
            "classification": 0.0,
        },
        "finetuning": {"summarization": 0.0, "question_answering": 0.0067, "classification": 0.0},
    }
    dump(metrics / "contamination.json", apart)
    dump(metrics / "comparison.json", comparison())
    for number, stage in enumerate(("download", "tokenize", "pretrain", "finetune")):
        timing = {
            "seconds": 42.5 * (number + 1),
            "peak_memory_bytes": 812_000_000 + number * 10**8,
            "device": "AMD EPYC 9R14",
        }
        if stage in ("pretrain", "finetune"):
            timing |= {
                "tokens_per_second": 8123.4,
                "mfu": 0.412,
                "dtype": "bfloat16",
                "compiled": True,
            }
            timing |= {
                "deterministic": stage == "pretrain",
                "identical_bytes": f"{stage}'s own words",
            }
        dump(metrics / "timing" / f"{stage}.json", timing)


def _last_losses(metrics: Path) -> dict[str, float]:
    found = {}
    for path in metrics.glob("*_history.csv"):
        with open(path, encoding="utf-8", newline="") as file:
            found[path.name.removesuffix("_history.csv")] = float(
                list(csv.DictReader(file))[-1]["val_loss"]
            )
    return found


def scored(task: str, model: str, i: int) -> dict[str, Any]:
    """The columns of one example's own scores."""
    if task == "classification":
        return {
            "accuracy": float((i + (model == "base")) % 3 == 0),
            "log_likelihoods": [-1.0 - i / 10, -2.0, -9.0],
        }
    return {
        "f1" if task == "question_answering" else "rougeLsum": i / 39
        if model == "finetuned"
        else 0.1
    }


def comparison() -> dict[str, Any]:
    """What `evaluate` writes of finetuned against base."""
    loss = {
        "a": 2.9,
        "b": 3.01,
        "difference": 0.11,
        "low": 0.1,
        "high": 0.12,
        "p_value": 0.0001,
        "n": 141,
    }
    accuracy = {
        "a": 0.11,
        "b": 0.57,
        "difference": 0.46,
        "low": 0.4,
        "high": 0.52,
        "p_value": 0.034,
        "n": 300,
    }
    worse = {**accuracy, "a": 0.64, "difference": -0.07, "baseline": "baseline:tfidf"}
    better = {**accuracy, "a": 0.33, "b": 0.61, "difference": 0.28, "p_value": 0.0001}
    equal = {**accuracy, "a": 0.198, "b": 0.279, "difference": 0.081, "p_value": 0.2}
    return {
        "finetuned - base": {
            "language_modeling": {"loss": loss},
            "classification": {"accuracy": accuracy},
        },
        "finetuned - best baseline": {
            "classification": {"accuracy": worse},
            "question_answering": {"f1": {**better, "baseline": "baseline:sliding_window"}},
            "summarization": {"rougeLsum": {**equal, "baseline": "baseline:lead"}},
        },
    }


def _predictions(directory: Path, note: str) -> None:
    place = directory / "metrics" / "predictions"
    place.mkdir()
    question = (
        "Answer the question with a span of the text.\n\n"
        "Text: axis : int, optional. The axis along which to sum."
    )
    for model, answer in (
        ("base", "axis axis axis\nthe the"),
        ("finetuned", "the axis along which to sum"),
    ):
        for task in TASKS:
            rows = [
                {
                    "id": f"{i:03d}",
                    "prompt": f"{question} {note}\n\nQuestion {i}: what is `axis`?",
                    "prediction": "" if (model, i) == ("base", 0) else f"{answer} {note}",
                    "references": ["The axis along which to sum", "along which to sum"],
                    **scored(task, model, i),
                }
                for i in range(40)
            ]
            pq.write_table(pa.Table.from_pylist(rows), place / f"{model}-{task}.parquet")

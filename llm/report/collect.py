"""The data of the report, read from the stages' files into one plain dictionary.

Only `params.yaml` is required. Missing parts are None or empty, and the page says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm.model.config import Config
from llm.params import Params
from llm.report import alignment, predictions, scores, techniques, tuning
from llm.report.corpus import corpus
from llm.runtime import provenance
from llm.runtime.flatten import flatten
from llm.runtime.io import read_json
from llm.runtime.parquet import readable
from llm.text.spaced import spaced
from llm.tracking import metrics_files

CLIP = 1600  # characters of a text in the report
SCALING = Path("metrics/scaling.json")  # written by an optional stage
STAGES = ("download", "tokenize", "pretrain", "mix", "finetune", "evaluate", "report")


def collect(params: Params, run: dict[str, str] | None = None) -> dict[str, Any]:
    """Read the files of the current directory.

    Args:
        run: MLflow's `name` and `id` of this execution, if it has one.
    """
    metrics = metrics_files.metrics()
    evaluate = metrics.get("evaluate", {})
    manifests = provenance.manifests()
    timing = metrics_files.timings()
    return {
        "params": flatten(params.model_dump(mode="json")),
        "metrics": metrics,
        "model": _model(metrics, params),
        "manifests": manifests,
        "cleaning": metrics.get("tokenize", {}).get("clean"),
        "dropped": _reasons(manifests, metrics.get("mix", {})),
        "corpus": corpus(metrics.get("tokenize", {})),
        "curves": metrics_files.curves(),
        "evaluate": evaluate,
        "contamination": evaluate.get("contamination", {}),
        "contamination_by_text": metrics.get("contamination", {}),
        "samples": _samples(params.report.samples),
        "predictions": predictions.collect(clip_middle, evaluate),
        "scaling": read_json(SCALING) if SCALING.is_file() else None,
        "studies": tuning.collect(),
        "comparison": metrics.get("comparison", {}),
        "examples": _examples(
            params.report.data_examples, list(metrics.get("mix", {}).get("tasks", {}))
        ),
        "timing": {stage: timing.get(stage) for stage in STAGES if stage != "report"},
        "alignment": alignment.collect(),
        "techniques": techniques.collect(),
        "versions": provenance.versions(),
        "git": provenance.git(),
        "run": run,
        "lock": provenance.lock_entries(),
        "overall": scores.overall(evaluate),
        "confidence": params.evaluate.confidence,
    }


def _model(metrics: dict[str, Any], params: Params) -> dict[str, Any] | None:
    """Return dimensions and parameters by part, from models/base/config.json."""
    path = Path("models/base/config.json")
    if not path.is_file():
        return None
    config = Config.from_json(read_json(path), str(path))
    hidden, layers = config.hidden_size, config.num_hidden_layers
    queries, keys = (
        config.num_attention_heads * config.head_dim,
        config.num_key_value_heads * config.head_dim,
    )
    embedding = config.vocab_size * hidden
    norms = hidden * (2 * layers + 1) + (2 * config.head_dim * layers if config.qk_norm else 0)
    parts = {
        "Token embedding"
        + (" (also the output projection)" if config.tie_word_embeddings else ""): embedding,
        **({} if config.tie_word_embeddings else {"Output projection": embedding}),
        f"Attention, {layers} layers": layers * hidden * (2 * queries + 2 * keys),
        f"Feed-forward (SwiGLU), {layers} layers": layers * 3 * hidden * config.intermediate_size,
        "Norms": norms,
    }
    total = sum(parts.values())
    assert total == config.parameters(), "the parts must add up to the model"
    return {
        "architecture": config.architecture,
        "total": total,
        "parts": [
            {"name": name, "count": count, "share": count / total} for name, count in parts.items()
        ],
        "config": {
            key: getattr(config, key)
            for key in ("vocab_size", *type(params.model).model_fields)
            if hasattr(config, key)
        },
        "flops_per_token": config.flops_per_token(params.pretrain.sequence_length),
    }


def _reasons(manifests: dict[str, Any], mix: dict[str, Any]) -> dict[str, Any]:
    """Return what was dropped: `datasets`, and `rows` of {reason, stage, counts}.

    `counts` has one number for each dataset, None if the reason did not occur there.
    """
    counts: dict[tuple[str, str], dict[str, int]] = {}
    for name, manifest in manifests.items():
        drops = [("download", reason, n) for reason, n in manifest.get("dropped", {}).items()]
        rejected = manifest.get("rejected", {}).get("by_reason", {})
        drops += [("download", f"rejected: {reason}", n) for reason, n in rejected.items()]
        drops += [
            ("mix", reason, n)
            for reason, n in mix.get("tasks", {}).get(name, {}).get("dropped", {}).items()
        ]
        for stage, reason, n in drops:
            if type(n) is int and n:
                counts.setdefault((stage, reason), {})[name] = n
    order = sorted(counts, key=lambda key: (key[0], -sum(counts[key].values()), key[1]))
    rows = [
        {"stage": key[0], "reason": key[1], "counts": [counts[key].get(name) for name in manifests]}
        for key in order
    ]
    return {"datasets": list(manifests), "rows": rows}


def _samples(count: int) -> dict[str, list[dict[str, Any]]]:
    """Return task → answers of base and finetuned to the same prompts.

    The prompts are evenly spaced over the test examples, not selected.
    """
    samples = {}
    for task, columns in predictions.by_task():
        own, base = columns["finetuned"], columns.get("base", {})
        if "prompt" not in own:  # windows of text
            continue
        before = dict(zip(base.get("id", ()), base.get("prediction", ()), strict=True))
        samples[task] = [
            {
                "prompt": clip_middle(own["prompt"][i]),
                "references": [clip(str(text), 400) for text in own["references"][i][:3]],
                "base": clip(str(before[id]), 600) if before.get(id) is not None else None,
                "finetuned": clip(str(own["prediction"][i]), 600),
            }
            for i, id in spaced(list(enumerate(own["id"])), count)
        ]
    return samples


def _examples(count: int, tasks: list[str]) -> dict[str, list[dict[str, str]]]:
    """Return task → its first `count` training examples in the mixture's random order."""
    path = Path("data/mix/train.parquet")
    if not path.is_file():
        return {}
    examples_of: dict[str, list[dict[str, str]]] = {task: [] for task in tasks}
    for row in _stream(path, ["task", "prompt", "response"]):
        examples = examples_of.setdefault(row["task"], [])
        if len(examples) < count:
            examples.append({"prompt": clip(row["prompt"]), "response": clip(row["response"])})
        full = all(len(examples) >= count for examples in examples_of.values())
        if full and "language_modeling" in examples_of:
            break
    return {task: examples for task, examples in examples_of.items() if examples}


def _stream(path: Path, columns: list[str]) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet as pq

    with readable(path, "Delete it and run `dvc repro`."), pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=256, columns=columns):
            yield from batch.to_pylist()


def clip(text: str, limit: int = CLIP) -> str:
    """Return at most `limit` characters of a text, with a mark where it was cut."""
    return (
        text
        if len(text) <= limit
        else f"{text[:limit].rstrip()} … ({len(text) - limit:,} more characters)"
    )


def clip_middle(text: str, limit: int = 1000) -> str:
    """Return about `limit` characters of a prompt: its start, and its end, where questions are."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2].rstrip()}\n[… {len(text) - limit:,} characters …]\n{text[-(limit // 2) :].lstrip()}"

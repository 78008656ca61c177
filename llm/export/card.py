"""The model card: README.md beside a model, with where it comes from and what it scores; a function
of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llm.evaluate.metric_names import MAIN, METRICS
from llm.model.config import Config
from llm.runtime.io import read_json, read_yaml, sha256, write_bytes
from llm.tokenizer.bpe import MARK

LIBRARIES = {
    "hf": "transformers",
    "gguf": "gguf",
    "pt": "pytorch",
}  # the hub's names of what reads each form
LICENCE = "LICENSE.md"
SECTIONS = ("seed", "tokenize", "model", "pretrain", "mix", "finetune")

SPECIAL_IS_TEXT = (
    "Special tokens that stand in a message (`<|user|>`, …) are plain text to `apply_chat_template`. In a text that "
    "you tokenize yourself they are special tokens, unless you call `tokenizer(text, split_special_tokens=True)`: do "
    "so with text that you do not trust."
)
SPECIAL_IS_SPECIAL = (
    "Special tokens that stand in a message or a text are special tokens: take them out of text that you do not trust, "
    "or `tokenizer(text, split_special_tokens=True)`."
)


def write_card(
    folder: Path, name: str, model: Path, config: Config, adapter: Path | None, to: str = "hf"
) -> None:
    """Write `folder`/README.md about the model that lies there, from what the pipeline's stages
    left here.

    Parts whose files are missing are left out: no scores before `evaluate`, no data for a
    checkpoint of others. The licences of the data, from which that of the weights follows, go into
    `folder`/LICENSE.md."""
    ours = (
        model.resolve().is_relative_to(Path("models").resolve())
        and "checkpoints" not in model.parts
    )
    manifests = _manifests() if ours else {}
    licences = sorted({str(m["licence"]) for m in manifests.values() if m.get("licence")})
    front: dict[str, Any] = {
        "library_name": LIBRARIES[to],
        "pipeline_tag": "text-generation",
        "model_name": name,
    }
    params = read_yaml("params.yaml") if Path("params.yaml").exists() else {}
    scored = ours and model.name in ("base", "finetuned") and adapter is None
    scores = Path("metrics/evaluate.json")
    evaluated = read_json(scores) if scored and scores.exists() else {}
    if base := _base_model(model, params, ours):
        front["base_model"] = base
    if hub := sorted({id for m in manifests.values() for id in _hub_datasets(m.get("source"))}):
        front["datasets"] = hub
    if results := _model_index(evaluated.get(model.name, {}), manifests):
        front["model-index"] = [{"name": name, "results": results}]
    if licences:
        front |= {"license": "other", "license_name": "see-data", "license_link": LICENCE}
        text = ["The licence of the weights follows from the licences of the data:", ""]
        write_bytes(
            folder / LICENCE,
            ("\n".join([*text, *(f"- {each}" for each in licences)]) + "\n").encode(),
        )
    lines = ["---", *yaml.safe_dump(front, sort_keys=True).splitlines(), "---", "", f"# {name}", ""]
    lines += _about(model, config, adapter)
    if manifests:
        lines += ["", "## Data", "", *_data(manifests)]
        lines += [
            "",
            "The licence of the weights follows from the data's:",
            "",
            *(f"- {text}" for text in licences),
        ]
    if ours and params:
        chosen = {key: params[key] for key in SECTIONS if key in params}
        shown = yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None, width=110)
        lines += ["", "## Params", "", "```yaml", *shown.splitlines(), "```"]
    if evaluated:
        lines += ["", "## Scores", "", *_scores(evaluated, model.name)]
    lines += ["", "## Files", "", "| file | bytes | SHA-256 |", "|---|---|---|"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "README.md":
            lines.append(
                f"| {path.relative_to(folder).as_posix()} | {path.stat().st_size:,} | `{sha256(path)}` |"
            )
    write_bytes(folder / "README.md", ("\n".join(lines) + "\n").encode())


def _base_model(model: Path, params: dict[str, Any], ours: bool) -> str | None:
    """Return the hub's id of the checkpoint that a model is or was trained from, if there is one."""
    origins = [model.as_posix()]
    if ours and model.name == "finetuned":
        origins.append(params.get("finetune", {}).get("base", ""))
    if ours and (model.name == "base" or origins[-1] == "models/base"):
        origins.append(params.get("pretrain", {}).get("init", ""))
    checkpoints = params.get("checkpoints") or {}
    known = {f"models/checkpoints/{key}": each["id"] for key, each in checkpoints.items()}
    return next((known[origin] for origin in reversed(origins) if origin in known), None)


def _hub_datasets(source: Any) -> list[str]:
    """Return the ids of the hub's datasets in a manifest's `source`."""
    if not isinstance(source, dict):
        return []
    if source.get("source") == "mixture":
        return [id for each in source.get("sources", {}).values() for id in _hub_datasets(each)]
    return [source["id"]] if source.get("source") == "hub" else []


def _model_index(
    scores: dict[str, dict[str, Any]], manifests: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return the results of a card's `model-index`; a score's `args` have its interval.

    The form is that of https://github.com/huggingface/hub-docs/blob/main/modelcard.md.
    """
    results = []
    for task, metrics in scores.items():
        hub = _hub_datasets(manifests.get(task, {}).get("source"))
        listed = [
            {
                "type": metric,
                "name": METRICS[metric].label,
                "value": score["value"],
                "args": {
                    key: score[key] for key in ("low", "high", "n", "signature") if key in score
                },
            }
            for metric, score in metrics.items()
            if metric in MAIN
        ]
        if listed:
            results.append(
                {
                    "task": {"type": "text-generation", "name": task},
                    "dataset": {"type": hub[0] if hub else task, "name": task, "split": "test"},
                    "metrics": listed,
                }
            )
    return results


def _about(model: Path, config: Config, adapter: Path | None) -> list[str]:
    window = f", looking back {config.sliding_window:,}" if config.sliding_window else ""
    lines = [
        f"A decoder-only language model of {config.parameters():,} parameters (`{config.architecture}`): "
        f"{config.num_hidden_layers} layers of width {config.hidden_size:,}, {config.num_attention_heads} heads "
        f"({config.num_key_value_heads} of keys and values), a vocabulary of {config.vocab_size:,}, a context of "
        f"{config.max_position_embeddings:,} tokens{window}.",
        "",
        f"Made from `{model.as_posix()}`"
        + (f" with the adapter `{adapter.as_posix()}` merged." if adapter else "."),
    ]
    if (model / "prompt").is_dir():
        lines += [
            "",
            "It was finetuned with a soft prompt, in `prompt/`: `PeftModel.from_pretrained(model, 'prompt')`.",
        ]
    described = model / "tokenizer_config.json"
    if described.is_file():
        marked = MARK in str(read_json(described).get("chat_template"))
        lines += ["", SPECIAL_IS_TEXT if marked else SPECIAL_IS_SPECIAL]
    return lines


def _manifests() -> dict[str, dict[str, Any]]:
    paths = sorted(
        Path("data/raw").glob("*/manifest.json"),
        key=lambda path: (path.parent.name != "pretrain", path),
    )
    return {path.parent.name: {**read_json(path), "sha256": sha256(path)} for path in paths}


def _data(manifests: dict[str, dict[str, Any]]) -> list[str]:
    from llm.report.format import cell, source_of

    rows = [
        "| dataset | source | revision | records | bytes of text | manifest's SHA-256 |",
        "|---|---|---|---|---|---|",
    ]
    for name, m in manifests.items():
        rows.append(
            f"| {name} | {cell(source_of(m))} | {cell(m.get('revision') or '')} | {m['rows']:,} | {m['bytes']:,} "
            f"| `{m['sha256']}` |"
        )
    return rows


def _scores(evaluate: dict[str, Any], name: str) -> list[str]:
    """This model's scores, with intervals, beside the best baseline of the same metric that was
    measured.
    """
    rows = [
        "| task | metric | value | interval | examples | baselines |",
        "|---|---|---|---|---|---|",
    ]
    baselines = [key for key in evaluate if key.startswith("baseline:")]
    for task, metrics in evaluate.get(name, {}).items():
        for metric, score in metrics.items():
            others = [
                f"{key.removeprefix('baseline:')} {evaluate[key][task][metric]['value']:.4g}"
                for key in baselines
                if metric in evaluate[key].get(task, {})
            ]
            rows.append(
                f"| {task} | {metric} | {score['value']:.4g} | {score['low']:.4g} … {score['high']:.4g} | {score['n']} "
                f"| {', '.join(others)} |"
            )
    overlap = evaluate.get("contamination", {})
    if overlap:
        shares = ", ".join(f"{task} {share:.1%}" for task, share in overlap.items())
        rows += ["", f"Test examples that share a passage with the training text: {shares}."]
    signatures = {
        s["signature"]
        for metrics in evaluate.get(name, {}).values()
        for s in metrics.values()
        if s.get("signature")
    }
    return [
        *rows,
        "",
        "How they were measured:",
        "",
        *(f"- `{signature}`" for signature in sorted(signatures)),
    ]

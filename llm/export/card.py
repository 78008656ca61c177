"""The model card: README.md beside a model, with where it comes from and what it scores; a function
of the files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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
    if ours and Path("params.yaml").exists():
        params = read_yaml("params.yaml")
        chosen = {key: params[key] for key in SECTIONS if key in params}
        shown = yaml.safe_dump(chosen, sort_keys=False, default_flow_style=None, width=110)
        lines += ["", "## Params", "", "```yaml", *shown.splitlines(), "```"]
    scores = Path("metrics/evaluate.json")
    if ours and model.name in ("base", "finetuned") and adapter is None and scores.exists():
        lines += ["", "## Scores", "", *_scores(read_json(scores), model.name)]
    lines += ["", "## Files", "", "| file | bytes | SHA-256 |", "|---|---|---|"]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != "README.md":
            lines.append(
                f"| {path.relative_to(folder).as_posix()} | {path.stat().st_size:,} | `{sha256(path)}` |"
            )
    write_bytes(folder / "README.md", ("\n".join(lines) + "\n").encode())


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

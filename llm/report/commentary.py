"""The sentences of the report: its summary, and the remarks below each table of scores."""

from __future__ import annotations

from typing import Any

from llm.evaluate import metric_names
from llm.evaluate.metric_names import COUNTS, LOWER_IS_BETTER
from llm.report import scores
from llm.report.format import chance, compact, duration, number, percent, signed, size, title

ODDITIES = {  # metric → how the page describes a share that is not zero
    "truncated": "of the prompts lost text",
    "unfinished": "of the answers were cut at their limit",
    "empty": "of the answers are empty",
    "no_reference": "of the examples have no reference",
    "unseen_label": "of the labels are none of the choices",
}


def summary(data: dict[str, Any]) -> list[str]:
    """Return the main results, one sentence each; contamination first, since all depend on it."""
    lines = [contaminated(data["contamination"])] if data["contamination"] else []
    pretrain, finetune, evaluate = (
        data["metrics"].get(name) or {} for name in ("pretrain", "finetune", "evaluate")
    )
    model = data["model"]
    if model and pretrain:
        source = data["manifests"].get("pretrain", {})
        text = f", drawn from {size(source['bytes'])} of text" if source.get("bytes") else ""
        lines.append(
            f"A decoder-only transformer of {number(model['total'])} parameters was trained "
            f"on {number(pretrain['tokens'])} tokens{text}; its loss on held-out documents is "
            f"{number(pretrain['val_loss'])} nats per token, or {number(pretrain['val_bits_per_byte'])} bits per byte."
        )
    if finetune:
        lines.append(
            f"It was then finetuned on {number(finetune['examples'])} examples, training "
            f"{number(finetune['trainable_parameters'])} parameters ({percent(finetune['trainable_fraction'])})."
        )
    for task in scores.tasks(evaluate):
        metric = scores.headline(evaluate, task)
        if metric and (line := _result(evaluate, task, metric)):
            share = data["contamination"].get(task)
            lines.append(f"{line[:-1]}; contamination {percent(share)}." if share else line)
    if line := forgetting(data["comparison"]):
        lines.append(line)
    known = [timing for timing in data["timing"].values() if timing]
    if known:
        lines.append(
            f"The stages timed here took {duration(sum(t['seconds'] for t in known))} together and at most "
            f"{size(max(t['peak_memory_bytes'] for t in known))} of memory, on {known[-1]['device']}."
        )
    return lines


def contaminated(shares: dict[str, float]) -> str:
    """Return a sentence on the share of each task's test examples that overlap with training."""
    documents = shares.get("language_modeling")
    examples = {task: share for task, share in shares.items() if task != "language_modeling"}
    if not any(shares.values()):
        held_out = "" if documents is None else " and no held-out document"
        verb = "share" if held_out else "shares"
        return f"No test example{held_out} {verb} 13 words in a row with the training text."
    parts = [f"{percent(share)} ({title(task).lower()})" for task, share in examples.items()]
    lines = [f"Of the test examples {', '.join(parts)}"] if any(examples.values()) else []
    if documents:
        lines.append(f"{'of' if lines else 'Of'} the held-out documents {percent(documents)}")
    return f"{' and '.join(lines)} share 13 words in a row with the training text."


def _result(evaluate: dict[str, Any], task: str, metric: str) -> str | None:
    """Return the finetuned (or base) score beside the base model and the strongest baseline."""
    name = "finetuned" if scores.score(evaluate, "finetuned", task, metric) else "base"
    own = scores.score(evaluate, name, task, metric)
    if own is None:
        return None
    interval = (
        f" ({number(own['low'])} to {number(own['high'])})" if own.get("low") is not None else ""
    )
    line = f"{title(task)}: {metric_names.label(metric)} {number(own['value'])}{interval} for the {name} model"
    if name == "finetuned" and (before := scores.score(evaluate, "base", task, metric)):
        line += f", {number(before['value'])} before finetuning"
    sign = -1 if metric in LOWER_IS_BETTER else 1
    others = [
        (m, s["value"])
        for m in scores.models(evaluate)
        if (s := scores.score(evaluate, m, task, metric))
    ]
    baselines = [(m, value) for m, value in others if m.startswith("baseline:")]
    if baselines:
        best, value = max(baselines, key=lambda item: sign * item[1])
        line += f", {number(value)} for the strongest baseline ({best.removeprefix('baseline:').replace('_', ' ')})"
    return line + "."


def tiles(data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (figure, label) for the strip below the title."""
    strip: list[tuple[str, str]] = []
    if data["model"]:
        strip.append((compact(data["model"]["total"]), "parameters"))
    if pretrain := data["metrics"].get("pretrain"):
        strip.append((compact(pretrain["tokens"]), "training tokens"))
        strip.append((number(pretrain["val_bits_per_byte"]), "bits per byte, held out"))
    for task in scores.tasks(data["evaluate"]):
        metric = scores.headline(data["evaluate"], task)
        own = scores.score(data["evaluate"], "finetuned", task, metric) if metric else None
        if own and metric and metric not in LOWER_IS_BETTER:
            strip.append(
                (number(own["value"]), f"{metric_names.label(metric)}, {title(task).lower()}")
            )
    return strip


def remarks(evaluate: dict[str, Any], comparison: dict[str, Any]) -> dict[str, list[str]]:
    """Return the sentences below each task's table, by task: gains, then oddities of examples."""
    remarks_of: dict[str, list[str]] = {}
    for task in scores.tasks(evaluate):
        lines = []
        gains = comparison.get("finetuned - base", {}).get(task, {})
        changes = [_gain(metric, gain) for metric, gain in gains.items() if _shown(metric)]
        if changes:
            lines.append(
                f"Finetuned against base, paired by example (approximate randomisation): {'; '.join(changes)}."
            )
        for model in ("finetuned", "base"):
            odd = [
                f"{percent(score['value'])} {ODDITIES[metric]}"
                for metric in COUNTS
                if metric in ODDITIES
                and (score := scores.score(evaluate, model, task, metric))
                and score["value"]
            ]
            if odd:
                lines.append(f"{scores.model_label(model)}: {', '.join(odd)}.")
        if lines:
            remarks_of[task] = lines
    return remarks_of


def _shown(metric: str) -> bool:
    return (
        metric not in metric_names.NOT_A_SCORE
        and "/" not in metric
        and metric not in ("rougeL", "loss")
    )


def _gain(metric: str, gain: dict[str, Any]) -> str:
    sign = "+" if gain["difference"] > 0 else ""
    interval = f"{number(gain['low'])} to {number(gain['high'])}"
    return f"{metric_names.label(metric)} {sign}{number(gain['difference'])} ({interval}, {chance(gain['p_value'])})"


def forgetting(comparison: dict[str, Any]) -> str | None:
    """Return how finetuning changed the loss on held-out text, or None if it was not compared."""
    loss = comparison.get("finetuned - base", {}).get("language_modeling", {}).get("loss")
    if not loss:
        return None
    verb = "raised" if loss["difference"] > 0 else "lowered"
    certain = "more than chance" if loss["p_value"] < 0.05 else "no more than chance"
    return (
        f"Forgetting: finetuning {verb} the loss on held-out text from {number(loss['a'])} to {number(loss['b'])} "
        f"nats per token (difference {signed(loss['low'])} to {signed(loss['high'])}, {certain})."
    )


def by_source(evaluate: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return task → {models, rows} of tasks with scores by source.

    A row is (source, documents, value of each model).
    """
    tables = {}
    for task in scores.tasks(evaluate):
        models = [m for m in ("finetuned", "base") if task in evaluate.get(m, {})]
        names = dict.fromkeys(
            metric
            for m in models
            for metric in evaluate[m][task]
            if "/" in metric and metric.split("/")[0] in LOWER_IS_BETTER
        )
        rows = []
        for metric in names:
            by_model = [scores.score(evaluate, m, task, metric) or {} for m in models]
            documents = next((score["n"] for score in by_model if score), None)
            rows.append(
                (metric.split("/", 1)[1], documents, [score.get("value") for score in by_model])
            )
        if rows:
            tables[task] = {"models": models, "rows": rows}
    return tables


def contamination_by_side(task: str, by_text: dict[str, dict[str, float]]) -> str:
    """Return `(pretraining 1.0 %, finetuning 0.3 %)`, or nothing where sides were not recorded."""
    sides = [
        f"{side} {percent(shares[task])}" for side, shares in by_text.items() if task in shares
    ]
    return f"({', '.join(sides)})" if sides else ""

"""What stands below a table of scores: how sure the gain is, what was odd about the examples,
scores by source.
"""

from __future__ import annotations

from typing import Any

from llm.evaluate import metric_names
from llm.evaluate.metric_names import COUNTS, LOWER_IS_BETTER
from llm.report import scores

SAID = {  # of a share that is not zero
    "truncated": "of the prompts lost text",
    "unfinished": "of the answers were cut at their limit",
    "empty": "of the answers are empty",
    "no_reference": "of the examples have no reference",
    "unseen_label": "of the labels are none of the choices",
}


def remarks(
    evaluate: dict[str, Any], comparison: dict[str, Any], percent: Any, number: Any
) -> dict[str, list[str]]:
    """Task → sentences. percent, number: how the page writes them."""
    found: dict[str, list[str]] = {}
    for task in scores.tasks(evaluate):
        lines = []
        gains = comparison.get("finetuned - base", {}).get(task, {})
        told = [_gain(metric, gain, number) for metric, gain in gains.items() if _shown(metric)]
        if told:
            lines.append(
                f"Finetuned against base, paired by example (approximate randomisation): {'; '.join(told)}."
            )
        for model in ("finetuned", "base"):
            odd = [
                f"{percent(score['value'])} {SAID[metric]}"
                for metric in COUNTS
                if metric in SAID
                and (score := scores.score(evaluate, model, task, metric))
                and score["value"]
            ]
            if odd:
                lines.append(f"{scores.model_label(model)}: {', '.join(odd)}.")
        if lines:
            found[task] = lines
    return found


def _shown(metric: str) -> bool:
    return (
        metric not in metric_names.NOT_A_SCORE
        and "/" not in metric
        and metric not in ("rougeL", "loss")
    )


def _gain(metric: str, gain: dict[str, Any], number: Any) -> str:
    sign = "+" if gain["difference"] > 0 else ""
    chance = "p < 0.001" if gain["p_value"] < 0.001 else f"p = {gain['p_value']:.3f}"
    interval = f"{number(gain['low'])} to {number(gain['high'])}"
    return f"{metric_names.label(metric)} {sign}{number(gain['difference'])} ({interval}, {chance})"


def forgetting(comparison: dict[str, Any], number: Any) -> str | None:
    """What finetuning cost on the text that the base model was trained for."""
    loss = comparison.get("finetuned - base", {}).get("language_modeling", {}).get("loss")
    if not loss:
        return None
    verb = "rose" if loss["difference"] > 0 else "fell"
    chance = "more than chance" if loss["p_value"] < 0.05 else "no more than chance"
    return (
        f"Forgetting: with finetuning the loss on held-out text {verb} from {number(loss['a'])} to {number(loss['b'])} "
        f"nats per token ({number(loss['low'])} to {number(loss['high'])} higher, {chance})."
    )


def by_source(evaluate: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Task → {models, rows of (source, documents, value of each model)} where scores were taken by
    source.
    """
    found = {}
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
            each = [scores.score(evaluate, m, task, metric) or {} for m in models]
            documents = next((score["n"] for score in each if score), None)
            rows.append(
                (metric.split("/", 1)[1], documents, [score.get("value") for score in each])
            )
        if rows:
            found[task] = {"models": models, "rows": rows}
    return found

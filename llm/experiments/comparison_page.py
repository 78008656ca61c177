"""Several experiments side by side, as one HTML page that needs nothing beside it.

The page shows each experiment's params, scores, losses and curves. The others are compared with the
first experiment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.evaluate import metric_names
from llm.evaluate.paired import Difference
from llm.experiments.revisions import Revision
from llm.report import scores
from llm.report.collect import clip, clip_middle
from llm.report.figures import curves as figures
from llm.report.figures import differences
from llm.report.render import fill
from llm.runtime.flatten import flatten
from llm.runtime.io import write_where_told
from llm.text.spaced import spaced
from llm.tracking import metrics_files

# The stages with a curve and a validation loss.
STAGES = {"pretrain": "Pretraining", "finetune": "Finetuning"}
SAMPLES = 4  # examples shown a task
Rows = list[dict[str, float]]
# Task, difference from the first experiment, and `A` or `B` if one is better.
Row = tuple[str, Difference, str]


@dataclass
class Experiment:
    """One column of the page."""

    name: str
    commit: str | None
    params: dict[str, Any]  # flat
    evaluate: dict[str, Any]
    losses: dict[str, float]  # stage → final validation loss
    curves: dict[str, Rows]
    # task → columns of its predictions
    answers: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    differences: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(revision: Revision) -> Experiment:
    """Return an experiment's params, scores and curves; files that are not here become notes.

    Raises:
        UserError: it has no params.yaml or no scores.
    """
    experiment = Experiment(
        name=revision.name,
        commit=revision.commit,
        params=flatten(revision.yaml("params.yaml")),
        evaluate=revision.json("metrics/evaluate.json"),
        losses={},
        curves={},
    )
    for stage in STAGES:
        try:
            experiment.losses[stage] = revision.json(f"metrics/{stage}.json")["val_loss"]
            text = revision.read(f"metrics/{stage}_history.csv").decode()
            experiment.curves[stage] = metrics_files.parse_history(
                text, f"{revision.name}: metrics/{stage}_history.csv"
            )
        except UserError as error:
            experiment.notes.append(str(error))
    return experiment


def write(experiments: Sequence[Experiment], path: Path, models: tuple[str, str]) -> None:
    """Write the page.

    Args:
        models: the model whose scores are shown, of the first experiment and of the others.
    """
    data = {
        "experiments": experiments,
        "first": experiments[0],
        "params": differing(experiments),
        "headline": score_rows(experiments, models, headline_only=True),
        "all_scores": score_rows(experiments, models),
        "samples": samples(experiments),
        "stages": STAGES,
        "lower": metric_names.LOWER_IS_BETTER,
    }
    write_where_told(path, fill("comparison.html.j2", data, draw(experiments)).encode())


def differing(experiments: Sequence[Experiment]) -> dict[str, list[Any]]:
    """Return param → value in each experiment, or None, for the params that differ."""
    keys = dict.fromkeys(key for experiment in experiments for key in experiment.params)
    values = {key: [experiment.params.get(key) for experiment in experiments] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def score_rows(
    experiments: Sequence[Experiment], models: tuple[str, str], headline_only: bool = False
) -> list[dict[str, Any]]:
    """Return a row for each score: `task`, `metric`, `n`, and a cell for each experiment.

    A cell is None if the experiment lacks the score. It has `value`, `low` and `high`; `difference`
    from the first experiment, if their answers could be paired; and `better`: True, False, or None
    if no difference is significant. `best` marks the best value if the first experiment is better
    than all others, or another one better than the first.
    """
    own = [e.evaluate.get(models[bool(number)], {}) for number, e in enumerate(experiments)]
    merged = {"finetuned": {k: v for scored in reversed(own) for k, v in scored.items()}}
    rows = []
    for task in scores.tasks(merged):
        wanted = [scores.headline(merged, task)] if headline_only else scores.metrics(merged, task)
        for metric in (name for name in wanted if name):
            scores_of_metric = [scored.get(task, {}).get(metric) for scored in own]
            values = [score["value"] for score in scores_of_metric if score]
            best = (min if metric in metric_names.LOWER_IS_BETTER else max)(values)
            cells = [
                {**score, **_against_first(e, task, metric)} if score else None
                for score, e in zip(scores_of_metric, experiments, strict=True)
            ]
            rivals = [other for other in cells[1:] if other]
            comparable = bool(rivals) and metric not in metric_names.NOT_A_SCORE
            for cell in filter(None, cells):
                wins = cell["better"] is True
                if cell is cells[0]:
                    wins = all(rival["better"] is False for rival in rivals)
                cell["best"] = comparable and wins and cell["value"] == best
            sizes = sorted(
                {score["n"] for score in scores_of_metric if score and score.get("n") is not None}
            )
            rows.append({"task": task, "metric": metric, "n": sizes, "cells": cells})
    return rows


def _against_first(experiment: Experiment, task: str, metric: str) -> dict[str, Any]:
    for other, difference, better in experiment.differences:
        if (other, difference.metric) == (task, metric):
            return {"difference": difference, "better": {"B": True, "A": False}.get(better)}
    return {"difference": None, "better": None}


def samples(experiments: Sequence[Experiment]) -> dict[str, list[dict[str, Any]]]:
    """Return task → examples that all experiments answered, evenly spaced."""
    samples_of = {}
    tasks = [set(e.answers) for e in experiments]
    for task in sorted(set.intersection(*tasks)) if tasks else []:
        columns = [e.answers[task] for e in experiments]
        if any("prediction" not in each for each in columns):  # windows of text
            continue
        first = columns[0]
        answers = [dict(zip(each["id"], each["prediction"], strict=True)) for each in columns]
        common = [
            (i, id) for i, id in enumerate(first["id"]) if all(id in each for each in answers)
        ]
        samples_of[task] = [
            {
                "prompt": clip_middle(first["prompt"][i]),
                "references": [clip(str(text), 400) for text in first["references"][i][:3]],
                "answers": [
                    (e.name, clip(str(each[id]), 600))
                    for e, each in zip(experiments, answers, strict=True)
                ],
            }
            for i, id in spaced(common, SAMPLES)
        ]
    return samples_of


# -- figures


def draw(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Return name → SVG in stand-in colours: curves, and differences from the first experiment."""
    drawings = {}
    for stage, title in STAGES.items():
        curves = {e.name: e.curves[stage] for e in experiments if len(e.curves.get(stage, [])) > 1}
        if curves:
            drawings[f"{stage}_curves"] = figures.overlaid(_grouped(curves), f"{title}: loss")
    for number, experiment in enumerate(experiments[1:], 1):
        if experiment.differences:
            title = f"{experiment.name} − {experiments[0].name}"
            drawings[f"differences_{number}"] = differences.draw(
                experiment.differences, title, experiment.name
            )
    return drawings


def _grouped(curves: dict[str, Rows]) -> dict[str, Rows]:
    """Return each curve once, under the names of all experiments that have it."""
    names: list[list[str]] = []
    for name, rows in curves.items():
        same = [others for others in names if curves[others[0]] == rows]
        if same:
            same[0].append(name)
        else:
            names.append([name])
    if len(names) == 1 < len(curves):
        return {"the same in all": curves[names[0][0]]}
    return {", ".join(same): curves[same[0]] for same in names}

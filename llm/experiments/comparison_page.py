"""Several experiments side by side, as one HTML page that needs nothing beside it.

What is read of an experiment: its params, and of `metrics/` the scores, losses and curves. The
    first experiment is the
one that the others are compared with.
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
from llm.tracking import metrics_files

STAGES = {
    "pretrain": "Pretraining",
    "finetune": "Finetuning",
}  # those with a curve and a validation loss
SAMPLES = 4  # examples shown a task
Rows = list[dict[str, float]]
Row = tuple[
    str, Difference, str
]  # task, difference from the first experiment, `A` or `B` where one is better


@dataclass
class Experiment:
    """One column of the page."""

    name: str
    commit: str | None
    params: dict[str, Any]  # flat
    evaluate: dict[str, Any]
    losses: dict[str, float]  # stage → final validation loss
    curves: dict[str, Rows]
    answers: dict[str, dict[str, list[Any]]] = field(
        default_factory=dict
    )  # task → columns of its predictions
    differences: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read(revision: Revision) -> Experiment:
    """An experiment's params, scores and curves; what its cache does not hold becomes a note.

    Raises:
        UserError: it has no params.yaml or no scores.
    """
    found = Experiment(
        name=revision.name,
        commit=revision.commit,
        params=flatten(revision.yaml("params.yaml")),
        evaluate=revision.json("metrics/evaluate.json"),
        losses={},
        curves={},
    )
    for stage in STAGES:
        try:
            found.losses[stage] = revision.json(f"metrics/{stage}.json")["val_loss"]
            text = revision.read(f"metrics/{stage}_history.csv").decode()
            found.curves[stage] = metrics_files.parse_history(
                text, f"{revision.name}: metrics/{stage}_history.csv"
            )
        except UserError as error:
            found.notes.append(str(error))
    return found


def write(experiments: Sequence[Experiment], path: Path, models: tuple[str, str]) -> None:
    """Write the page; `models`: of the first experiment and of the others, the one whose scores are
    shown.
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
    """Param → its value in each experiment, of those that are not the same in all; None where one
    has it not.
    """
    keys = dict.fromkeys(key for experiment in experiments for key in experiment.params)
    values = {key: [experiment.params.get(key) for experiment in experiments] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def score_rows(
    experiments: Sequence[Experiment], models: tuple[str, str], headline_only: bool = False
) -> list[dict[str, Any]]:
    """A row for each score: `task`, `metric`, `n`, and a cell for each experiment, None where it
    was not scored.

    A cell has `value`, `low`, `high`, and where the experiment's answers could be paired with the
    first one's
    `difference` and `better`: True, False, or None where no difference is shown. `best` is the best
        value where that
    test shows a difference: of the first experiment against all others, of another against the
        first.
    """
    own = [e.evaluate.get(models[bool(number)], {}) for number, e in enumerate(experiments)]
    merged = {
        "finetuned": {task: found for scored in reversed(own) for task, found in scored.items()}
    }
    rows = []
    for task in scores.tasks(merged):
        wanted = [scores.headline(merged, task)] if headline_only else scores.metrics(merged, task)
        for metric in (name for name in wanted if name):
            found = [scored.get(task, {}).get(metric) for scored in own]
            values = [score["value"] for score in found if score]
            best = (min if metric in metric_names.LOWER_IS_BETTER else max)(values)
            cells = [
                {**score, **_against_first(e, task, metric)} if score else None
                for score, e in zip(found, experiments, strict=True)
            ]
            for cell in filter(None, cells):
                rivals = [other for other in cells[1:] if other]
                shown = (
                    all(c["better"] is False for c in rivals)
                    if cell is cells[0]
                    else cell["better"] is True
                )
                cell["best"] = (
                    metric not in metric_names.NOT_A_SCORE
                    and cell["value"] == best
                    and bool(rivals)
                    and shown
                )
            sizes = sorted({score["n"] for score in found if score and score.get("n") is not None})
            rows.append({"task": task, "metric": metric, "n": sizes, "cells": cells})
    return rows


def _against_first(experiment: Experiment, task: str, metric: str) -> dict[str, Any]:
    for other, difference, better in experiment.differences:
        if (other, difference.metric) == (task, metric):
            return {"difference": difference, "better": {"B": True, "A": False}.get(better)}
    return {"difference": None, "better": None}


def samples(experiments: Sequence[Experiment]) -> dict[str, list[dict[str, Any]]]:
    """Task → examples that all experiments answered, evenly spaced: prompt, references, and each
    one's answer.
    """
    found = {}
    tasks = [set(e.answers) for e in experiments]
    for task in sorted(set.intersection(*tasks)) if tasks else []:
        columns = [e.answers[task] for e in experiments]
        if any("prediction" not in each for each in columns):  # windows of text
            continue
        places = [{id: i for i, id in enumerate(each["id"])} for each in columns]
        common = [id for id in columns[0]["id"] if all(id in place for place in places)]
        picked = (
            [common[i * len(common) // SAMPLES] for i in range(SAMPLES)]
            if len(common) > SAMPLES
            else common
        )
        found[task] = [
            {
                "prompt": clip_middle(columns[0]["prompt"][places[0][id]]),
                "references": [
                    clip(str(text), 400) for text in columns[0]["references"][places[0][id]][:3]
                ],
                "answers": [
                    (e.name, clip(str(each["prediction"][place[id]]), 600))
                    for e, each, place in zip(experiments, columns, places, strict=True)
                ],
            }
            for id in picked
        ]
    return found


# -- figures


def draw(experiments: Sequence[Experiment]) -> dict[str, str]:
    """Name → SVG in stand-in colours: the curves of each stage, and each experiment's differences
    from the first.
    """
    found = {}
    for stage, title in STAGES.items():
        curves = {e.name: e.curves[stage] for e in experiments if len(e.curves.get(stage, [])) > 1}
        if curves:
            found[f"{stage}_curves"] = figures.overlaid(_grouped(curves), f"{title}: loss")
    for number, experiment in enumerate(experiments[1:], 1):
        if experiment.differences:
            title = f"{experiment.name} − {experiments[0].name}"
            found[f"differences_{number}"] = differences.draw(
                experiment.differences, title, experiment.name
            )
    return found


def _grouped(curves: dict[str, Rows]) -> dict[str, Rows]:
    """Curves that are the same once, under all their names."""
    groups: list[tuple[list[str], Rows]] = []
    for name, rows in curves.items():
        same = next((names for names, other in groups if other == rows), None)
        if same is None:
            groups.append(([name], rows))
        else:
            same.append(name)
    if len(groups) == 1 and len(curves) > 1:
        return {"the same in all": groups[0][1]}
    return {", ".join(names): rows for names, rows in groups}

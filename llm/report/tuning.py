"""Hyperparameter studies in the report: importances, progress and all trials.

The tuner writes `metrics/tuning/<study>.json` and a page of it; the report shows the same section
for every such file. Reading needs no Optuna, since the file contains the importances.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.report.figures import curves
from llm.runtime.io import read_json, write_bytes, write_json

FOLDER = Path("metrics/tuning")
ENOUGH = 4  # finished trials; importances of fewer mean nothing
FEW = 5  # whole numbers that get a tick each
DRAWN = 6  # the most important params, which get a panel each
PRESENT = "params.yaml"  # attribute of the trial that has that file's values
STATES = {"COMPLETE": "finished", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running"}


def describe(study: Any, name: str, metric: str) -> dict[str, Any]:
    """Return the study as plain values; trials are best first, those without a value last."""
    # Other trials are waiting.
    known = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in STATES]
    distributions = {key: each for trial in known for key, each in trial.distributions.items()}
    fixed = {key for key, distribution in distributions.items() if distribution.single()}
    trials = []
    for trial in known:
        seen = trial.intermediate_values
        trials.append(
            {
                "name": f"{name}-{trial.number}",
                "number": trial.number,
                "state": STATES[trial.state.name],
                # Optuna reports the last loss of a stopped trial.
                "value": trial.value if trial.state.name == "COMPLETE" else None,
                "present": trial.user_attrs.get(PRESENT, False),
                "last_tokens": max(seen) if seen else None,
                "params": {key: value for key, value in trial.params.items() if key not in fixed},
            }
        )
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    trials.sort(key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"]))
    return {
        "study": name,
        "metric": metric,
        "direction": study.direction.name.lower(),
        "fixed": {
            key: value for trial in known[:1] for key, value in trial.params.items() if key in fixed
        },
        "logarithmic": sorted(
            k for k, each in distributions.items() if getattr(each, "log", False)
        ),
        "importances": {k: share for k, share in importances(study).items() if k not in fixed},
        "trials": trials,
    }


def importances(study: Any) -> dict[str, float]:
    """Return param → share of the variance among finished trials.

    Empty if there are too few trials, or all have the same value.

    fANOVA: Hutter et al. 2014, proceedings.mlr.press/v32/hutter14.html.
    """
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH or len({trial.value for trial in done}) < 2:
        return {}
    shares = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    return {key: float(share) for key, share in shares.items()}


def write(study: dict[str, Any], folder: Path = FOLDER) -> Path:
    """Write a described study as `<folder>/<study>.json` and as a page; return the page's path."""
    from llm.report.render import fill

    write_json(folder / f"{study['study']}.json", study)
    path = folder / f"{study['study']}.html"
    write_bytes(path, fill("tuning_page.html.j2", {"studies": [study]}, draw([study])).encode())
    return path


def collect() -> list[dict[str, Any]]:
    """Read the studies of this run, by name."""
    return [read_json(path) for path in sorted(FOLDER.glob("*.json"))]


def draw(studies: list[dict[str, Any]]) -> dict[str, str]:
    """Return figure name → SVG in stand-in colours, for studies with enough finished trials."""
    figures = {}
    with curves.drawing() as plt:
        for number, study in enumerate(studies):
            done = [trial for trial in study["trials"] if trial["value"] is not None]
            if study["importances"]:
                figures[f"tuning_{number}"] = _overview(plt, study, done)
                figures[f"tuning_{number}_params"] = _slices(plt, study, done)
    return figures


def _overview(plt: Any, study: dict[str, Any], done: list[dict[str, Any]]) -> str:
    """Draw importances, each finished trial's value, and the best value so far."""
    shares = study["importances"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, max(2.2, 0.9 + 0.28 * len(shares))))
    names = sorted(shares, key=lambda key: shares[key])
    left.barh(names, [shares[key] for key in names], color=curves.BLUE, height=0.62)
    left.tick_params(axis="y", labelcolor=curves.INK)
    left.grid(False, axis="y")
    left.set(title="Importance", xlabel="share of the variance", xlim=(0, 1))
    order = sorted(done, key=lambda trial: trial["number"])
    numbers, values = [trial["number"] for trial in order], [trial["value"] for trial in order]
    better = min if study["direction"] == "minimize" else max
    best = [better(values[: end + 1]) for end in range(len(values))]
    right.plot(numbers, values, "o", color=curves.BLUE, markersize=4)
    right.step(numbers, best, where="post", color=curves.ORANGE, linewidth=1.2, label="best so far")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.set(title="Trials", xlabel="trial", ylabel=_label(study))
    right.legend()
    return curves.to_svg(figure)


def _slices(plt: Any, study: dict[str, Any], done: list[dict[str, Any]]) -> str:
    """Draw values over each of the most important params, with the best trial highlighted."""
    shares = study["importances"]
    keys = sorted(shares, key=lambda key: -shares[key])[:DRAWN]
    columns = 2 if len(keys) == 4 else min(3, len(keys))
    rows = -(-len(keys) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(7.2, 0.3 + 1.9 * rows), sharey=True, squeeze=False
    )
    for panel in grid.flat[len(keys) :]:
        panel.set_axis_off()
    for panel, key in zip(grid.flat, keys, strict=False):
        known = [trial for trial in done if key in trial["params"]]
        settings = [trial["params"][key] for trial in known]
        if any(isinstance(setting, str | bool) for setting in settings):
            settings = [str(setting) for setting in settings]
        elif key in study["logarithmic"]:
            panel.set_xscale("log")
            panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            panel.xaxis.set_minor_formatter(
                lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else ""
            )
            panel.tick_params(axis="x", which="minor", size=0)
        elif all(isinstance(setting, int) for setting in settings) and len(set(settings)) <= FEW:
            panel.set_xticks(sorted(set(settings)))
        values = [trial["value"] for trial in known]
        panel.plot(settings, values, "o", color=curves.BLUE, markersize=4)
        panel.plot(settings[:1], values[:1], "D", color=curves.ORANGE, markersize=5)
        panel.set(xlabel=key)
    for panel in grid[:, 0]:
        panel.set(ylabel=_label(study))
    return curves.to_svg(figure)


def _label(study: dict[str, Any]) -> str:
    return str(study["metric"].rsplit(".", 1)[-1].rsplit(":", 1)[-1])

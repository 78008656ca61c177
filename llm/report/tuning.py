"""A study of `llm.tune` as one HTML page: which params mattered, how the best value fell, every trial."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import Any

from llm.io import write_bytes
from llm.report import figures

ENOUGH = 4  # finished trials below which importances say nothing


def write(study: Any, name: str, metric: str, folder: Path) -> Path:
    """Write `<folder>/<name>.html`; returns its path."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    parts = [f"<h1>{escape(name)}</h1><p>{escape(metric)}, {study.direction.name.lower()}d by Optuna.</p>"]
    values = importances(study)
    if values:
        parts.append(f"<h2>Importance</h2><figure>{figures.for_page('importance', _bars(values))}</figure>")
        parts.append("<p>Share of the variance that each param explains (fANOVA, Hutter et al. 2014).</p>")
    keys = sorted({key for trial in study.trials for key in trial.params})
    head = "".join(f"<th>{escape(word)}</th>" for word in ("trial", "state", "value", *keys))
    rows = []
    for trial in sorted(study.trials, key=lambda t: (t.value is None, _signed(study, t), t.number)):
        cells = [f"{name}-{trial.number}", trial.state.name.lower(), _text(trial.value)]
        cells += [_text(trial.params.get(key)) for key in keys]
        rows.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>")
    table = f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    parts.append(f"<h2>Trials</h2>{table}")
    path = folder / f"{name}.html"
    page = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
    write_bytes(path, f"{page}<style>{style}</style></head><body><main>{''.join(parts)}</main></body></html>".encode())
    return path


def importances(study: Any) -> dict[str, float]:
    """Param → share of the variance among finished trials; empty where there are too few, or all are equal."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(done) < ENOUGH or len({trial.value for trial in done}) < 2:
        return {}
    return dict(get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0)))


def _signed(study: Any, trial: Any) -> float:
    value = trial.value or 0.0
    return float(value if study.direction.name == "MINIMIZE" else -value)


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.5g}" if isinstance(value, float) else str(value)


def _bars(values: dict[str, float]) -> str:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with matplotlib.rc_context(figures.STYLE):
        figure, axes = plt.subplots(figsize=(5.5, 0.8 + 0.3 * len(values)))
        names = sorted(values, key=lambda key: values[key])
        axes.barh(names, [values[key] for key in names], color=figures.BLUE, height=0.62)
        axes.tick_params(axis="y", labelcolor=figures.INK)
        axes.set_xlim(0, 1)
        axes.grid(False, axis="y")
        return figures._svg(figure)

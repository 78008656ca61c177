"""`python -m llm seeds`: mean and spread of each score over experiments with different seeds.

Each seed is a DVC experiment: `dvc exp run --queue -S finetune.seed=1,2,3` makes three, each with
its own history, cache and checkpoints. The intervals of one run show the effect of the choice of
test examples, the spread over seeds that of chance in training. Neither includes the other.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from typing import Any

from llm.errors import UserError
from llm.evaluate import metric_names
from llm.evaluate.metric_names import COUNTS
from llm.experiments.revisions import WORKSPACE, Revision, experiments
from llm.runtime.flatten import flatten

SEEDS = ("seed", "pretrain.seed", "finetune.seed")
SCORES, PARAMS = "metrics/evaluate.json", "params.yaml"
MODELS = ("finetuned", "base")


@dataclass(frozen=True)
class Run:
    """One experiment: its name, its seeds, and `model/task/metric` → value."""

    name: str
    seeds: tuple[Any, ...]
    settings: dict[str, Any]  # all other params
    values: dict[tuple[str, str, str], float]


@dataclass(frozen=True)
class Spread:
    """A score over seeds; `deviation` is the sample standard deviation (n − 1)."""

    model: str
    task: str
    metric: str
    values: list[float]

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The sample standard deviation over seeds."""
        return statistics.stdev(self.values)


def read(revision: Revision) -> Run:
    """Return params and scores of a revision; raise UserError if a file is missing."""
    params = flatten(revision.yaml(PARAMS))
    results = revision.json(SCORES)
    values = {
        (model, task, metric): float(score["value"])
        for model in MODELS
        for task, scores in results.get(model, {}).items()
        for metric, score in scores.items()
        if metric not in COUNTS and "/" not in metric
    }
    return Run(revision.name, tuple(params.get(key) for key in SEEDS), _settings(params), values)


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if key not in SEEDS}


def collect(names: list[str]) -> list[Run]:
    """Return the named runs, or the workspace and the experiments that differ in seeds only.

    Raises:
        UserError: named runs differ in more than seeds, or there are not two seeds.
    """
    if names:
        runs = []
        for name in names:
            with Revision(name) as revision:
                runs.append(read(revision))
        for run in runs[1:]:
            keys = sorted(run.settings.keys() | runs[0].settings.keys())
            other = [key for key in keys if run.settings.get(key) != runs[0].settings.get(key)]
            if other:
                raise UserError(
                    f"{run.name} differs from {runs[0].name} in {', '.join(other[:5])}, not in seeds only: "
                    "use `python -m llm compare`."
                )
    else:
        with Revision(WORKSPACE) as revision:
            runs = [read(revision)]
        for name in experiments():
            with Revision(name) as revision:
                # Params are in git; the scores of others need not be on this machine.
                same = _settings(flatten(revision.yaml(PARAMS))) == runs[0].settings
                if same and SCORES in revision.list("metrics"):
                    runs.append(read(revision))
    # Runs with equal seeds have the same results: keep the first.
    by_seeds = {run.seeds: run for run in reversed(runs)}
    if len(by_seeds) < 2:
        raise UserError(
            f"{len(by_seeds)} seed among {', '.join(run.name for run in runs)}: a spread needs two or more. Run e.g. "
            "`dvc exp run --queue -S finetune.seed=1,2,3` and `dvc queue start`."
        )
    return list(by_seeds.values())[::-1]


def spreads(runs: list[Run]) -> list[Spread]:
    """Return every score that all runs have, in the order of the tables."""
    common = set.intersection(*(set(run.values) for run in runs))

    def position(item: tuple[str, str, str]) -> tuple[Any, ...]:
        model, task, metric = item
        return MODELS.index(model), task, metric_names.rank(metric), metric

    return [Spread(*key, [run.values[key] for run in runs]) for key in sorted(common, key=position)]


def show_seeds(names: list[str], as_json: bool) -> None:
    """Print mean and spread of every score."""
    runs = collect(names)
    scores = spreads(runs)
    if as_json:
        rows = [vars(s) | {"mean": s.mean, "standard_deviation": s.deviation} for s in scores]
        described = [{"name": run.name, **dict(zip(SEEDS, run.seeds, strict=True))} for run in runs]
        print(json.dumps({"runs": described, "scores": rows}, indent=2))
        return
    for run in runs:
        own = ", ".join(
            f"{key} {seed}" for key, seed in zip(SEEDS, run.seeds, strict=True) if seed is not None
        )
        print(f"{run.name}: {own}")
    title = None
    for s in scores:
        if (s.model, s.task) != title:
            title = s.model, s.task
            print(f"\n{s.model} · {s.task} · {len(s.values)} seeds, mean ± standard deviation")
        digits = 3 if abs(s.mean) < 10 else 1
        values = "  ".join(f"{value:.{digits}f}" for value in s.values)
        print(f"  {s.metric:<20} {s.mean:.{digits}f} ± {s.deviation:.{digits}f}   ({values})")

"""`python -m llm seeds`: mean and spread of each score over experiments with different seeds.

Each seed is a DVC experiment: `dvc exp run --queue -S finetune.seed=1,2,3` makes three, each with
its own history, cache and checkpoints. The intervals of one run show the effect of the choice of
test examples, the spread over seeds that of chance in training. Neither includes the other.

Beside a score of the finetuned model stands the best baseline, by its mean over seeds, with a mark:
▲ every seed is significantly better than its best baseline (the paired test in
metrics/comparison.json, p < 0.05), ▼ every seed significantly worse, ○ anything else.
"""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import dataclass, replace
from typing import Any

from llm.errors import UserError
from llm.evaluate import metric_names
from llm.evaluate.metric_names import COUNTS
from llm.experiments.revisions import WORKSPACE, Revision, experiments
from llm.report import scores
from llm.runtime.flatten import flatten

SEEDS = ("seed", "pretrain.seed", "finetune.seed")
SCORES, PARAMS, COMPARISON = "metrics/evaluate.json", "params.yaml", "metrics/comparison.json"
MODELS = ("finetuned", "base")


@dataclass(frozen=True)
class Run:
    """One experiment: its name, its seeds, and its scores by (model, task, metric)."""

    name: str
    seeds: tuple[Any, ...]
    settings: dict[str, Any]  # all other params
    scores: dict[tuple[str, str, str], dict[str, Any]]  # {value, low, high}; baselines' too
    marks: dict[tuple[str, str], str]  # (task, metric) → the finetuned model's against baselines

    @property
    def values(self) -> dict[tuple[str, str, str], float]:
        """The scores of the models alone, without intervals."""
        return {key: float(s["value"]) for key, s in self.scores.items() if key[0] in MODELS}


@dataclass(frozen=True)
class Spread:
    """A score over seeds; `deviation` is the sample standard deviation (n − 1)."""

    model: str
    task: str
    metric: str
    values: list[float]
    intervals: list[tuple[float | None, float | None]]  # of each seed's run
    baseline: str = ""  # the best one
    baseline_mean: float | None = None
    mark: str = ""

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
    found = {
        (model, task, metric): score
        for model in results
        if model in MODELS or model.startswith("baseline:")
        for task, scores_of_task in results[model].items()
        for metric, score in scores_of_task.items()
        if metric not in COUNTS and "/" not in metric
    }
    comparison = revision.json(COMPARISON) if COMPARISON in revision.list("metrics") else {}
    tests = {
        (task, metric): test["mark"]
        for _, task, metric in found
        if (test := scores.against_baseline(comparison, task, metric))
    }
    seeds = tuple(params.get(key) for key in SEEDS)
    return Run(revision.name, seeds, _settings(params), found, tests)


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

    return [_spread(key, runs) for key in sorted(common, key=position)]


def _spread(key: tuple[str, str, str], runs: list[Run]) -> Spread:
    model, task, metric = key
    found = [run.scores[key] for run in runs]
    spread = Spread(
        model,
        task,
        metric,
        [float(score["value"]) for score in found],
        [(score.get("low"), score.get("high")) for score in found],
    )
    names = {
        name for name, *rest in runs[0].scores if name not in MODELS and rest == [task, metric]
    }
    means = {
        name: statistics.fmean(run.scores[name, task, metric]["value"] for run in runs)
        for name in sorted(names)
        if all((name, task, metric) in run.scores for run in runs)
    }
    if model != "finetuned" or not means or metric in metric_names.NOT_A_SCORE:
        return spread
    sign = -1 if metric in metric_names.LOWER_IS_BETTER else 1
    best = max(means, key=lambda name: sign * means[name])
    marks = {run.marks.get((task, metric), "") for run in runs}
    mark = marks.pop() if len(marks) == 1 else "○"
    return replace(spread, baseline=best, baseline_mean=means[best], mark=mark)


def run_seeds(count: int) -> None:
    """Run experiments until there are `count` seeds like the workspace, its own among them.

    Each is `dvc exp run --temp -S seed=N`: in a directory of its own, so the workspace stays. Seeds
    that were run before are not run again, so a stopped call can be repeated.

    Raises:
        UserError: an experiment failed.
    """
    with Revision(WORKSPACE) as revision:
        settings = _settings(flatten(revision.yaml(PARAMS)))
    done = set()
    for name in (WORKSPACE, *experiments()):
        with Revision(name) as revision:
            params = flatten(revision.yaml(PARAMS))
            if _settings(params) == settings and SCORES in revision.list("metrics"):
                done.add(params["seed"])
    new = [seed for seed in range(1, count + len(done) + 1) if seed not in done]
    for seed in new[: max(0, count - len(done))]:
        print(f"seed {seed}: dvc exp run --temp -S seed={seed}", flush=True)
        command = ["dvc", "exp", "run", "--temp", "-S", f"seed={seed}"]
        if code := subprocess.run(command, check=False).returncode:
            raise UserError(
                f"seed {seed}: `{' '.join(command)}` failed with exit code {code}; what it printed stands above. "
                "Give the same command again to continue."
            )


def show_seeds(names: list[str], as_json: bool) -> None:
    """Print mean and spread of every score."""
    runs = collect(names)
    found = spreads(runs)
    if as_json:
        rows = [vars(s) | {"mean": s.mean, "standard_deviation": s.deviation} for s in found]
        described = [{"name": run.name, **dict(zip(SEEDS, run.seeds, strict=True))} for run in runs]
        print(json.dumps({"runs": described, "scores": rows}, indent=2))
        return
    for run in runs:
        own = ", ".join(
            f"{key} {seed}" for key, seed in zip(SEEDS, run.seeds, strict=True) if seed is not None
        )
        print(f"{run.name}: {own}")
    title = None
    for s in found:
        if (s.model, s.task) != title:
            title = s.model, s.task
            print(f"\n{s.model} · {s.task} · {len(s.values)} seeds, mean ± standard deviation")
        print(f"  {line(s)}")


def line(s: Spread) -> str:
    """Return a score as text: mean, spread, each seed with its interval, the best baseline."""
    digits = 3 if abs(s.mean) < 10 else 1
    seeds = [
        f"{value:.{digits}f}"
        + (f" [{low:.{digits}f}, {high:.{digits}f}]" if None not in (low, high) else "")
        for value, (low, high) in zip(s.values, s.intervals, strict=True)
    ]
    text = f"{s.metric:<20} {s.mean:.{digits}f} ± {s.deviation:.{digits}f}   ({'  '.join(seeds)})"
    if s.baseline_mean is None:
        return text
    name = s.baseline.removeprefix("baseline:")
    return f"{text}   {s.mark} best baseline {s.baseline_mean:.{digits}f} ({name})"

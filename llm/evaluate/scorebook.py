"""The scores of all models, and the files of the answers behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.evaluate import metric_names, test_sets
from llm.evaluate.answers import Answers, measures
from llm.evaluate.language import Windows
from llm.evaluate.metrics import Measure
from llm.evaluate.paired import differences
from llm.evaluate.test_sets import TestSet

Scores = dict[str, dict[str, Any]]  # metric -> {value, low, high, n, signature}
LANGUAGE_MODELING = "language_modeling"


@dataclass
class ScoreBook:
    """`results`: model → task → metric → {value, low, high, n, signature}; answers go to files in
    `directory`.
    """

    directory: Path
    resamples: int
    confidence: float
    seed: int
    results: dict[str, dict[str, Scores]] = field(default_factory=dict)
    measures: dict[tuple[str, str], list[Measure]] = field(
        default_factory=dict
    )  # (model, task) -> what was scored

    def answers(self, model: str, test: TestSet, answers: Answers) -> None:
        """Score a model's answers to a test set and write them to `<model>-<task>.parquet`."""
        scored = [*measures(test, answers.texts, answers.form), *answers.extra]
        columns = {m.name: m.column for m in scored if m.column is not None} | answers.columns
        path = self.directory / f"{model.replace(':', '_')}-{test.name}.parquet"
        test_sets.write_predictions(path, test.rows, answers.texts, columns)
        self.add(model, test.name, scored)

    def add(self, model: str, task: str, measures: Sequence[Measure]) -> None:
        """Add value and interval of each measure. Raises UserError for one that is not finite."""
        scores: Scores = {}
        for measure in measures:
            score = measure.score(self.resamples, self.confidence, self.seed)
            if not all(math.isfinite(score[key]) for key in ("value", "low", "high")):
                raise UserError(
                    f"{model}, {task}: {measure.name} is not finite ({score['value']}). Did training diverge? "
                    "See the loss curves; lower learning_rate."
                )
            scores[measure.name] = score
        self.results.setdefault(model, {})[task] = scores
        self.measures[model, task] = list(measures)

    def windows(self, model: str, windows: Windows, more: Sequence[Measure] = ()) -> None:
        """Score a model's loss on held-out text and write its windows to
        `<model>-language_modeling.parquet`.
        """
        columns = {
            "nats": windows.nats.tolist(),
            "tokens": windows.tokens.tolist(),
            "bytes": windows.bytes.tolist(),
        }
        path = self.directory / f"{model.replace(':', '_')}-{LANGUAGE_MODELING}.parquet"
        test_sets.write_columns(path, {"id": [str(i) for i in range(len(windows.nats))], **columns})
        self.add(model, LANGUAGE_MODELING, [*windows.measures(), *more])

    def comparison(self, a: str, b: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return task → metric → the difference `b` − `a`, for metrics that both models have."""
        return {
            task: self._differences(a, b, task, {m.name for m in scored})
            for (model, task), scored in self.measures.items()
            if model == a and (b, task) in self.measures
        }

    def against_baselines(self, model: str) -> dict[str, dict[str, dict[str, Any]]]:
        """Return task → metric → the difference of a model from the best baseline of that metric.

        `baseline` names it. Metrics without a baseline are left out, and so are those that the
        baseline has over other units (zstd reads documents, a model windows of text).
        """
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for (name, task), scored in self.measures.items():
            if name != model:
                continue
            best: dict[str, set[str]] = {}  # baseline -> the metrics that it is best at
            for measure in scored:
                if baseline := self._best_baseline(task, measure):
                    best.setdefault(baseline, set()).add(measure.name)
            tests = {
                metric: {"baseline": baseline, **difference}
                for baseline, metrics in best.items()
                for metric, difference in self._differences(baseline, model, task, metrics).items()
            }
            if tests:
                found[task] = tests
        return found

    def _best_baseline(self, task: str, measure: Measure) -> str | None:
        """Return the baseline with the best value of a metric, if it has the measure's units."""
        if measure.name in metric_names.NOT_A_SCORE or "/" in measure.name:
            return None
        sign = -1 if measure.name in metric_names.LOWER_IS_BETTER else 1
        others = [
            (sign * other.value(), name, other.statistics.shape)
            for (name, its_task), scored in self.measures.items()
            if its_task == task and name.startswith("baseline:")
            for other in scored
            if other.name == measure.name
        ]
        if not others:
            return None
        _, name, shape = max(others)
        return name if shape == measure.statistics.shape else None

    def _differences(self, a: str, b: str, task: str, metrics: set[str]) -> dict[str, Any]:
        """Return metric → the difference `b` − `a`, of scores alone."""
        ours, theirs = (
            [m for m in self.measures[model, task] if m.name in metrics - {*metric_names.COUNTS}]
            for model in (a, b)
        )
        found = differences(ours, theirs, self.resamples, self.confidence, self.seed)
        return {difference.metric: difference.to_json() for difference in found}

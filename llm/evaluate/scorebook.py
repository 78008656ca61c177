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
            task: {
                difference.metric: difference.to_json()
                for difference in differences(
                    [m for m in measures if m.name not in metric_names.COUNTS],
                    self.measures[b, task], self.resamples, self.confidence, self.seed,
                )
            }
            for (model, task), measures in self.measures.items()
            if model == a and (b, task) in self.measures
        }  # fmt: skip

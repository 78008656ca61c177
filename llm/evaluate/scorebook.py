"""Collects every model's scores and keeps the answers they came from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.evaluate import files, run
from llm.evaluate.files import TestSet
from llm.evaluate.metrics import Measure

Scores = dict[str, dict[str, Any]]  # metric -> {value, low, high, n, signature}
LANGUAGE_MODELING = "language_modeling"


@dataclass
class ScoreBook:
    """`results`: model → task → metric → {value, low, high, n, signature}; answers go to files in `directory`."""

    directory: Path
    resamples: int
    confidence: float
    seed: int
    results: dict[str, dict[str, Scores]] = field(default_factory=dict)

    def answers(self, model: str, test: TestSet, answers: run.Answers) -> None:
        """Score a model's answers to a test set and write them to `<model>-<task>.parquet`."""
        measures = [*run.measures(test, answers.texts, answers.form), *answers.extra]
        columns = {m.name: m.column for m in measures if m.column is not None} | answers.columns
        path = self.directory / f"{model.replace(':', '_')}-{test.name}.parquet"
        files.write_predictions(path, test.rows, answers.texts, columns)
        self.add(model, test.name, measures)

    def add(self, model: str, task: str, measures: Sequence[Measure]) -> None:
        """Value and interval of each measure. Raises UserError for one that is not finite."""
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

"""metrics/summary.json: what tables of runs show."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm.report.summary import summary
from llm.tracking import metrics_files
from tests.report import workspace


def test_a_run_is_told_in_flat_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert summary(metrics_files.metrics()) == {
        "score": pytest.approx((0.31 * 0.9 + 0.61 + 0.57) / 3),
        "summarization_rougeLsum": pytest.approx(0.31 * 0.9),
        "question_answering_f1": 0.61,
        "classification_accuracy": 0.57,
        "language_modeling_bits_per_byte": 1.249,
        "base_language_modeling_bits_per_byte": 1.212,
        "contamination": 0.0133,
        "pretrain_val_loss": metrics_files.metrics()["pretrain"]["val_loss"],
        "finetune_val_loss": metrics_files.metrics()["finetune"]["val_loss"],
        "parameters": 5_481_728,
        "pretrain_tokens": 5_996_544,
    }


def test_what_a_run_does_not_have_is_left_out() -> None:
    assert summary({}) == {}
    assert summary({"pretrain": {"val_loss": 2.5}}) == {"pretrain_val_loss": 2.5}

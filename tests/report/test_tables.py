"""MLflow's table of predictions: one row an example, the models side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm.report.tables import TEXT, write_tables
from tests.report import workspace


def test_models_stand_side_by_side_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.full(tmp_path)
    predictions = tmp_path / "metrics/predictions"
    rows = pq.read_table(predictions / "base-question_answering.parquet").to_pylist()[
        1:
    ]  # one less, in another order
    rows[0]["prediction"] = "x" * 5000
    pq.write_table(
        pa.Table.from_pylist(rows[::-1]), predictions / "base-question_answering.parquet"
    )
    pq.write_table(
        pa.table({"id": ["0"], "nats": [1.0]}), predictions / "finetuned-language_modeling.parquet"
    )
    monkeypatch.chdir(tmp_path)
    written = write_tables(tmp_path / "out")
    assert [path.stem for path in written] == [
        "classification",
        "question_answering",
        "summarization",
    ]
    found = json.loads(written[1].read_text(encoding="utf-8"))
    assert found["columns"] == [
        "id",
        "finetuned",
        "base",
        "references",
        "prompt",
        "f1, finetuned",
        "f1, base",
    ]
    assert len(found["data"]) == 40
    first, second = found["data"][:2]
    assert first[2] is None
    assert first[6] is None
    assert second[2] == "x" * TEXT
    assert second[5:] == [1 / 39, 0.1]
    assert second[3] == "The axis along which to sum\nalong which to sum"

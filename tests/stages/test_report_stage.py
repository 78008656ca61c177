"""`python -m stages.report` as DVC calls it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path

import pandas as pd

from tests import warm
from tests.report import workspace


def test_the_stage_writes_the_report_and_completes_the_run_of_cached_stages(tmp_path: Path) -> None:
    workspace.full(tmp_path)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_"))}
    environment |= {
        "PYTHONPATH": str(workspace.REPOSITORY),
        "DVC_ROOT": str(tmp_path),
        "DVC_EXP_NAME": "quick-fox",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    done = subprocess.run(
        [warm.python(), "-m", "stages.report"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower(), done.stderr
    report = tmp_path / "metrics" / "report"
    assert (report / "report.html").stat().st_size > 50_000
    assert (report / "report.md").is_file()
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        [(run_id, name, status)] = store.execute(
            "SELECT run_uuid, name, status FROM runs"
        ).fetchall()
        assert (name, status) == ("quick-fox", "FINISHED")
        points = dict(store.execute("SELECT key, COUNT(*) FROM metrics GROUP BY key").fetchall())
        assert points["pretrain/loss"] == 732
        assert points["finetune/loss"] == 96
        tags = dict(store.execute("SELECT key, value FROM tags").fetchall())
        latest = dict(store.execute("SELECT key, value FROM latest_metrics").fetchall())
    assert latest["evaluate/finetuned.question_answering.f1"] == 0.61
    assert latest["pretrain/val_bits_per_byte"] == 1.2118
    assert run_id in (report / "report.html").read_text(encoding="utf-8")
    artifacts = tmp_path / "mlartifacts" / run_id / "artifacts"
    assert (artifacts / "metrics" / "report" / "report.html").is_file()
    assert (artifacts / "metrics" / "predictions" / "finetuned-classification.parquet").is_file()
    # What MLflow's "Evaluation" shows as tables: files of log_table's form, named by this tag.
    tables = json.loads(tags["mlflow.loggedArtifacts"])
    assert {table["type"] for table in tables} == {"table"}
    for table, task in zip(tables, sorted(workspace.TASKS), strict=True):
        assert Path(table["path"]).stem == task
        loaded = pd.read_json(
            artifacts / table["path"], orient="split"
        )  # as mlflow.load_table does
        assert list(loaded.columns)[:3] == ["id", "finetuned", "base"]
        assert len(loaded) == 40
    assert not (tmp_path / "mlruns").exists()


def test_an_unknown_param_ends_the_stage_with_one_message(tmp_path: Path) -> None:
    workspace.minimal(tmp_path)
    with open(tmp_path / "params.yaml", "a", encoding="utf-8") as file:
        file.write("\nreprot: {samples: 3}\n")
    done = subprocess.run(
        [warm.python(), "-m", "stages.report"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(workspace.REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "did you mean report?" in done.stderr
    assert "Traceback" not in done.stderr

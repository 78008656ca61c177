"""`mlflow server` on PostgreSQL: several stages log to it at once, and what it misses while it is
down comes later.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm import params
from llm.tracking import executions, mlflow_store
from llm.tracking import run as tracking
from tests import warm
from tests.report import workspace
from tests.servers import MlflowServer, Postgres

BEFORE, AFTER = 100, 300  # steps
STAGE = f"""
import sys
from llm import params; from llm.tracking import run as tracking
with tracking.stage(params.load(), "pretrain") as run:
    for step in range({AFTER}):
        if step == {BEFORE}:
            print(run.run_id, flush=True)
            sys.stdin.readline()
        run.log_metrics({{"loss": 1.0 / (step + 1), "learning_rate": 0.1}}, step=step)
"""


@pytest.fixture
def database() -> Iterator[Postgres]:
    pytest.importorskip("psycopg")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def server(database: Postgres, tmp_path: Path) -> Iterator[MlflowServer]:
    started = MlflowServer(database.url, tmp_path / "artifacts")
    yield started
    started.stop()


# Slow: its siblings are in test_run.py: a dead server, and processes that log densely to one store.
@pytest.mark.slow
def test_three_stages_log_at_once_and_lose_nothing_to_a_database_that_goes_away_and_comes_back(
    database: Postgres, server: MlflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.minimal(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    stages = {}
    for name in ("one", "two", "three"):
        environment = {**os.environ, "PYTHONPATH": str(workspace.REPOSITORY), "DVC_EXP_NAME": name}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [warm.python(), "-c", STAGE]
        stages[name] = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, **pipes)
    ids = {name: stage.stdout.readline().strip() for name, stage in stages.items()}
    assert all(run_id not in ("", "None") for run_id in ids.values())
    database.stop()
    for name, stage in stages.items():
        _, errors = stage.communicate("\n", timeout=120)
        assert stage.returncode == 0, errors
        assert errors.count("warning") == 1, f"{name}: {errors}"
    spool = executions.directory() / "spool"
    assert len(list(spool.glob("*.jsonl"))) == 3
    database.start()

    with tracking.stage(params.load(), "mix") as run:
        run.log_metrics({"train": 3})
        assert run.run_id
    assert not list(spool.glob("*.jsonl"))
    client = mlflow_store.Store(server.url).client
    for name, run_id in ids.items():
        assert client.get_run(run_id).info.run_name == name
        points = sorted(
            (point.step, point.value)
            for point in client.get_metric_history(run_id, "pretrain/loss")
        )
        assert points == [(step, 1.0 / (step + 1)) for step in range(AFTER)], (
            "each point, and each once"
        )

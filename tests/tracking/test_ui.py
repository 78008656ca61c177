"""`python -m llm ui`: whatever ends it ends the servers that it started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from llm.tracking.mlflow_store import Store
from tests.conftest import ROOT


# Slow: SIGTERM ends the same `finally`; its sibling is Ctrl-C.
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGINT]
)
def test_a_signal_ends_the_servers_too(tmp_path: Path, number: signal.Signals) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copy(ROOT / "params.yaml", tmp_path)
    Store(uri).client.create_experiment("llm")
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llm", "ui"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    ) as ui:
        assert ui.stdout
        servers = []
        try:
            assert any("Open http" in line for line in ui.stdout)
            servers = psutil.Process(ui.pid).children(recursive=True)
            assert servers
            ui.send_signal(number)
            assert ui.wait(60) == (0 if number == signal.SIGINT else 128 + number)
            assert not [server for server in servers if server.is_running()]
        finally:
            for process in [*servers, ui]:  # where a promise was broken
                if isinstance(process, subprocess.Popen) or process.is_running():
                    process.kill()

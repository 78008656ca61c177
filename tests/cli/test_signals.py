"""A command that is asked to end ends what it started."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.pipeline.workspace import ROOT, environment, run

pytest.importorskip("optuna", reason="needs the extra `tune`")

STUDY = """
study: rates
metric: out.json:loss
trials: 1
space: {pretrain.learning_rate: {low: 0.001, high: 0.1, log: true}}
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_tune_ends_the_dvc_of_its_trial(tmp_path: Path, number: signal.Signals) -> None:
    root, began = tmp_path / "root", tmp_path / "began"
    root.mkdir()
    shutil.copyfile(ROOT / "params.yaml", root / "params.yaml")
    (root / "tuning.yaml").write_text(STUDY)
    stage = f"{{cmd: touch {began} && sleep 300, params: [pretrain.learning_rate], metrics: [out.json]}}"
    (root / "dvc.yaml").write_text(f"stages: {{pretrain: {stage}}}")
    (root / ".gitignore").write_text("/.state/\n")
    for words in ("git init -q", "dvc init -q", "git add -A", "git commit -qm start"):
        run(root, *words.split())
    variables = environment(root) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "llm", "tune"]
    with subprocess.Popen(
        command,
        cwd=root,
        env=variables,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # `nohup` ignores SIGHUP
    ) as tuner:
        started: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 120
            while not began.exists():
                assert tuner.poll() is None
                assert time.monotonic() < deadline, "no trial began"
                time.sleep(0.1)
            started = psutil.Process(tuner.pid).children(recursive=True)
            dvc = [process for process in started if "dvc" in " ".join(process.cmdline()[:3])]
            assert dvc
            tuner.send_signal(number)
            assert tuner.wait(60) == 128 + number
            assert not [process for process in dvc if process.is_running()]
        finally:
            for process in started:
                if process.is_running():
                    process.kill()
            tuner.kill()

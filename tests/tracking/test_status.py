"""A running stage can be watched: how far it is, and whether it hangs, runs away or is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llm.runtime import heartbeat
from llm.runtime.progress import Progress
from llm.runtime.timing import stage_timing
from llm.tracking import status
from llm.train.divergence import WINDOW, LossWatch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def test_a_stage_is_shown_while_it_runs_and_gone_when_it_is_done(workspace: Path) -> None:
    assert status.lines(status.read(), []) == ["no stage runs"]
    with stage_timing("pretrain") as _, Progress("pretrain", 1000, "tok", scale=True) as bar:
        bar.update(200, loss="5.25")
        time.sleep(0.05)
        bar.update(50, loss="5.21")
        shown = heartbeat.current()
        assert shown is not None
        shown.tell(tokens_per_second=1234.0)
        shown.write()
        (item,) = status.read()
        assert (item.experiment, item.stage, item.progress, item.loss) == (
            "workspace",
            "pretrain",
            0.25,
            "5.21",
        )
        assert (item.health, item.alive, item.pid) == ("ok", True, os.getpid())
        assert item.seconds_left is not None
        assert item.memory is not None
        assert item.seconds_left > 0
        assert item.memory > 10_000_000
        table = status.lines([item], ["abc", "def"])
        assert all(
            word in table[1] for word in ("workspace", "pretrain", "25%", "5.21", "1,234", "ok")
        )
        assert table[-1].startswith("queued: abc, def")
    assert status.read() == []
    assert heartbeat.current() is None


def test_validation_losses_are_of_the_run_that_began_last_under_a_name(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(tokens: int, loss: float) -> None:
        with stage_timing("pretrain"):
            shown = heartbeat.current()
            assert shown is not None
            shown.validated(tokens, loss)
            shown.validated(2 * tokens, loss - 1)
            raise ValueError("stopped")

    monkeypatch.setenv("DVC_EXP_NAME", "rates-4")
    for number, (tokens, loss) in enumerate([(100, 9.0), (200, 5.0)]):
        monkeypatch.setattr(os, "getpid", lambda number=number: 90 - number)
        with pytest.raises(ValueError, match="stopped"):
            stopped(tokens, loss)
    assert len(list((workspace / ".state/running").iterdir())) == 2
    assert status.validation("rates-4", "pretrain") == [(200, 5.0), (400, 4.0)]
    assert (
        status.validation("rates-4", "finetune") == status.validation("rates-5", "pretrain") == []
    )


def test_a_stage_that_failed_says_why_and_one_that_was_killed_is_told_from_it(
    workspace: Path,
) -> None:
    with pytest.raises(ValueError, match="boom"), stage_timing("mix"):
        raise ValueError("boom\nand more")
    (item,) = status.read()
    assert item.health == "ended: ValueError: boom"
    code = (
        "import time\nfrom llm.runtime import heartbeat\n"
        "from llm.runtime.timing import stage_timing\nfrom llm.runtime.progress import Progress\n"
        "with stage_timing('pretrain'), Progress('pretrain', 10) as bar:\n"
        " bar.update(3)\n heartbeat.current().write()\n print('on', flush=True)\n"
        " time.sleep(60)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=workspace,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DVC_EXP_NAME": "wiry-pika"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "on\n"
    item = next(item for item in status.read() if item.experiment == "wiry-pika")
    assert (item.alive, item.progress, item.health) == (True, 0.3, "ok")
    child.send_signal(signal.SIGKILL)
    child.wait()
    item = next(item for item in status.read() if item.experiment == "wiry-pika")
    assert (item.alive, item.health) == (False, "killed: the process is gone")
    assert "resume from their last state" in status.lines([item], [])[-1]
    path = workspace / ".state" / "running" / f"pretrain-{child.pid}.json"
    old = json.loads(path.read_text()) | {"updated": time.time() - 2 * status.KEEP}
    path.write_text(json.dumps(old))
    assert "wiry-pika" not in [item.experiment for item in status.read()]
    assert not path.exists()
    path.write_text(json.dumps(old | {"host": "a machine that is no more"}))
    assert [item.stage for item in status.read()] == ["mix"]
    assert not path.exists()


def test_no_progress_is_a_stall_only_when_it_lasts_longer_than_this_stage_ever_waits(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: now[0])
    shown = heartbeat.Heartbeat("pretrain")
    told: list[str] = []
    shown.listener = told.append
    now[0] += heartbeat.STALL_FIRST - 1  # compiling
    assert shown.health() == "ok"
    shown.tell()
    now[0] += 60
    shown.tell()  # its steps take a minute
    now[0] += 9 * 60
    shown.report()
    assert told == []
    now[0] += 2 * 60
    shown.report()
    shown.report()
    assert told == ["stalled: no progress for 11 min"]
    shown.tell()
    shown.report()
    assert told[1:] == ["ok"]
    shown.longest, shown.paused = 1.0, True
    now[0] += heartbeat.STALL_FIRST - 1
    assert shown.health() == "ok"  # a long validation
    now[0] += 2
    assert shown.health().startswith("stalled: no progress for 20 min in a validation")


def test_a_process_that_is_stopped_is_frozen(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stage_timing("evaluate"):
        path = next((workspace / ".state" / "running").iterdir())
        facts = json.loads(path.read_text()) | {"updated": time.time() - status.SILENT - 5}
        monkeypatch.setattr(status, "_facts", lambda _: facts)
        (item,) = status.read()
        assert item.health.startswith("frozen: no sign of life for")


def test_a_loss_that_runs_away_is_told_from_noise_a_spike_and_an_epoch(workspace: Path) -> None:
    import random

    draw = random.Random(0)
    watch = LossWatch()
    for step in range(400):  # falls from 9 to 3, with noise
        assert watch.update(step, 3 + 6 * 0.98**step + draw.gauss(0, 0.15)) is None
    assert watch.update(400, 6.0) is None  # a spike
    for step in range(401, 500):
        assert watch.update(step, 3 + draw.gauss(0, 0.15)) is None
    said = [watch.update(500 + i, 3 + 0.05 * i + draw.gauss(0, 0.15)) for i in range(60)]
    assert said[:5] == [None] * 5
    assert said[-1] is not None
    assert said[-1].startswith("diverging: the loss rose from 2.")
    for step in range(600, 700):
        last = watch.update(step, 2.9 + draw.gauss(0, 0.15))
    assert last is None  # it came back


def test_nothing_is_said_of_the_first_steps() -> None:
    watch = LossWatch()
    assert [watch.update(i, float(i)) for i in range(WINDOW - 1)] == [None] * (WINDOW - 1)


def test_no_stage_fails_because_it_cannot_be_watched(workspace: Path) -> None:
    (workspace / ".state").write_text("a file where the folder should be")
    with stage_timing("pretrain"), Progress("pretrain", 10) as bar:
        bar.update(5)
    assert (workspace / "metrics" / "timing" / "pretrain.json").exists()

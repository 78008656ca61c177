"""Unfinished work is kept for whoever does the same work, held by one at a time, and gone when it
is finished.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from llm.runtime.state_dirs import unfinished


def folders() -> list[str]:
    """Everything but the lock files, which stay."""
    stage = Path(os.environ["DVC_ROOT"]) / ".state" / "stage"
    return sorted(path.name for path in stage.glob("*") if path.suffix != ".lock")


def test_what_a_failed_run_left_is_found_by_the_same_run_only() -> None:
    def fail() -> None:
        with unfinished("stage", {"a": 1}) as work:
            (work / "half").write_text("x")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    with unfinished("stage", {"a": 2}) as work:
        assert not (work / "half").exists()
    with unfinished("stage", {"a": 1}) as work:
        assert (work / "half").read_text() == "x"
        assert (work / "inputs.json").exists()
    assert folders() == []


def test_one_waits_for_another_and_finds_what_it_did_not_finish(
    capsys: pytest.CaptureFixture[str],
) -> None:
    order: list[str] = []
    inside = threading.Event()

    def first(fails: bool) -> None:
        try:
            with unfinished("stage", {}) as work:
                (work / "half").write_text("x")
                inside.set()
                time.sleep(0.3)
                order.append("first")
                if fails:
                    raise RuntimeError
        except RuntimeError:
            pass

    for fails in (False, True):
        order.clear()
        inside.clear()
        thread = threading.Thread(target=first, args=(fails,))
        thread.start()
        inside.wait()
        with unfinished("stage", {}) as work:
            order.append("second")
            assert (work / "half").exists() == fails
        thread.join()
        assert order == ["first", "second"]
        assert (
            f"process {os.getpid()} does the same work; waiting for it" in capsys.readouterr().out
        )
        assert folders() == []


def test_many_at_once_never_work_side_by_side() -> None:
    busy, worked = [], []

    def run(number: int) -> None:
        for _ in range(10):
            with unfinished("stage", {}):
                busy.append(number)
                assert busy == [number]
                busy.pop()
                worked.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(worked) == 40
    assert folders() == []

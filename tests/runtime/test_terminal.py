"""Nothing that a stage prints can fail it, whatever its streams are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAGE = """
import os, sys
from pathlib import Path
from llm.errors import UserError
from llm.runtime.stage import run_stage

def main():
    with open("result", "w") as file:
        for _ in range(3):
            print("scores → metrics \\ud800", flush=True)
            print("→", file=sys.stderr, flush=True)
        os.write(1, b"printed by a library") if "closed" in sys.argv else None
        file.write("whole")
    sys.stdin.read()
    if "fail" in sys.argv:
        raise UserError("→ is wrong")

run_stage(main)
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(
    tmp_path: Path, shell: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "stage.py").write_text(STAGE, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    command = f"set -o pipefail; {sys.executable} stage.py {' '.join(arguments)} {shell}"
    return subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "cp1252"}, ASCII]
)
def test_a_character_that_the_terminal_lacks_is_escaped(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    done = run(tmp_path, "", **variables)
    assert (done.returncode, done.stderr) == (0, "\\u2192\n" * 3)
    assert done.stdout == "scores \\u2192 metrics \\ud800\n" * 3
    failed = run(tmp_path, "", "fail", **variables)
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, "error: \\u2192 is wrong")


def test_what_the_terminal_can_show_is_shown(tmp_path: Path) -> None:
    done = run(tmp_path, "", PYTHONIOENCODING="utf-8")
    assert (done.stdout, done.stderr) == ("scores → metrics \\ud800\n" * 3, "→\n" * 3)


@pytest.mark.parametrize(
    "shell", [">&-", "2>&-", "<&-", ">&- 2>&- <&-", "| true", "2>&1 | true", "&>/dev/full"]
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_stage_whose_streams_are_closed_or_full_does_its_work(
    tmp_path: Path, shell: str, unbuffered: str
) -> None:
    closed = ["closed"] if ">&-" in shell else []
    done = run(tmp_path, shell, *closed, PYTHONUNBUFFERED=unbuffered)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result").read_text() == "whole"
    assert "Error" not in done.stderr

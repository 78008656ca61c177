"""Outputs are whole or not there, also where two processes write the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm.io import read_json, whole_directory, write_json

WRITER = """
import sys
from pathlib import Path
from llm.io import whole_directory
for i in range(60):
    with whole_directory("out") as directory:
        for name in "abcdef":
            (directory / name).write_text(sys.argv[1] * 10_000)
"""


def test_two_processes_that_write_the_same_directory_both_end_well_and_leave_one_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
        for name in "xy"
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    contents = {(tmp_path / "out" / name).read_text() for name in "abcdef"}
    assert contents in ({"x" * 10_000}, {"y" * 10_000})
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = tmp_path / f".out.{ended.pid}.tmp", tmp_path / f".out.{os.getppid()}.tmp"
    for folder in (dead, living):
        folder.mkdir()
    with whole_directory(tmp_path / "out"):
        pass
    assert not dead.exists()
    assert living.exists()


def test_json_takes_every_string_that_python_has_and_gives_it_back(tmp_path: Path) -> None:
    value = {"é": "\ud801 𐐷 \\ud801 \u2028"}  # such as the id of a record that was refused
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("old")
    with pytest.raises(IsADirectoryError), whole_directory(tmp_path / "out") as directory:
        directory.write_text("new")
    assert (tmp_path / "out/a").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]

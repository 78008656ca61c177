"""Outputs are whole or not there, also where two processes write the same one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llm.__main__ import main
from llm.errors import UserError
from llm.runtime import outputs
from llm.runtime.io import read_json, whole_directory, write_json
from tests.conftest import ROOT

WRITER = """
import sys
from pathlib import Path
from llm.runtime.io import whole_directory
for i in range(60):
    with whole_directory("out", ("?",)) as directory:
        for name in "abcdef":
            (directory / name).write_text(sys.argv[1] * 10_000)
"""


def test_two_processes_that_write_the_same_directory_both_end_well_and_leave_one_whole(
    tmp_path: Path,
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, name],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
        )
        for name in "xy"
    ]
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert writer.returncode == 0, errors.decode()
    contents = {(tmp_path / "out" / name).read_text() for name in "abcdef"}
    assert contents in ({"x" * 10_000}, {"y" * 10_000})
    assert os.listdir(tmp_path) == ["out"]


def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, living = tmp_path / f".out.{ended.pid}.tmp", tmp_path / f".out.{os.getppid()}.tmp"
    for folder in (dead, living):
        folder.mkdir()
    with whole_directory(tmp_path / "out", ("a",)):
        pass
    assert not dead.exists()
    assert living.exists()


OTHER = ["mine.jsonl", "deep/a", ".git/HEAD", "link"]


@pytest.mark.parametrize("name", OTHER)
def test_a_directory_with_files_of_others_is_not_replaced(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / "a").write_text("ours")
    (out / ".DS_Store").touch()
    if name == "link":
        (out / name).symlink_to(tmp_path)
    else:
        (out / name).write_text("theirs")
    refused = pytest.raises(UserError, match=rf"out holds {name}, which this project did not write")
    with refused, whole_directory(out, ("a", "b/*")):
        raise AssertionError("the work is not begun")
    (out / name).unlink()
    with pytest.raises(UserError, match=rf"holds {name}"), whole_directory(out, ("a", "b/*")):
        (out / name).write_text("came while the work was done")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (out / "a").read_text() == "ours"


def test_the_files_that_stages_write_are_known_and_those_of_users_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outputs.refuse_others()  # nothing is there
    for path in (
        "data/raw/qa/part-00000.parquet",
        "data/tokens/clean/removed.npy",
        "models/base/model.safetensors",
    ):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    outputs.refuse_others()
    Path("data/raw/mine.jsonl").write_text("{}")
    monkeypatch.setattr(sys, "argv", ["llm", "sources"])  # which `make repro` asks first
    with pytest.raises(
        UserError, match=r"data/raw holds mine\.jsonl, which .* Move what is yours elsewhere"
    ):
        main()
    assert "@python -m llm sources\n\t@dvc " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_output_directory_of_the_pipeline_says_which_files_are_written_there() -> None:
    outs: set[str] = set()
    for name in ("dvc.yaml", "align/dvc.yaml"):
        stages = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["stages"]
        for out in (out for stage in stages.values() for out in stage.get("outs", [])):
            outs |= set(out) if isinstance(out, dict) else {out}
    assert {out for out in outs if not Path(out).suffix} == set(outputs.WRITTEN)


def test_json_takes_every_string_that_python_has_and_gives_it_back(tmp_path: Path) -> None:
    value = {"é": "\ud801 𐐷 \\ud801 \u2028"}  # such as the id of a record that was refused
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a").write_text("old")
    with pytest.raises(IsADirectoryError), whole_directory(tmp_path / "out", ("a",)) as directory:
        directory.write_text("new")
    assert (tmp_path / "out/a").read_text() == "old"
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("there", [True, False])
def test_a_link_to_a_directory_stays_and_what_it_leads_to_is_replaced(
    tmp_path: Path, there: bool
) -> None:
    target = tmp_path / "disk" / "raw"
    if there:
        target.mkdir(parents=True)
        (target / "a.txt").write_text("old")
    (tmp_path / "raw").symlink_to(target)
    for text in ("new", "newer"):
        with whole_directory(tmp_path / "raw", ["*.txt"]) as folder:
            (folder / "a.txt").write_text(text)
        assert (tmp_path / "raw").is_symlink()
        assert (target / "a.txt").read_text() == text
    assert sorted(p.name for p in target.parent.iterdir()) == ["raw"]

"""What git must never see as ours to commit: environments, also as links, and what a killed stage
left half-written.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.conftest import ROOT


def test_links_and_leftovers_of_a_kill_are_ignored(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (".venv", ".state", "data", "models", "mlartifacts", "exports"):
        (tmp_path / name).symlink_to(elsewhere)
    # As llm.runtime.io.whole_directory and write_bytes call them.
    for name in (
        "metrics/.predictions.17.tmp/a.parquet",
        "metrics/.evaluate.json.17.tmp",
        ".params.yaml.17.tmp",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    elsewhere.rmdir()
    done = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "?? .gitignore\n"

"""The scripts in docs/ that start several machines are whole, and start stages that exist."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml

from tests.conftest import ROOT


@pytest.mark.parametrize("name", ["slurm.sh", "sky.yaml"])
def test_the_scripts_of_docs_parse_and_start_a_stage_that_exists(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    script = yaml.safe_load(text)["run"] if name.endswith(".yaml") else text
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    (stage,) = re.findall(r"torchrun .*?-m (stages\.\w+)", script, flags=re.DOTALL)
    assert (ROOT / f"{stage.replace('.', '/')}.py").exists()
    assert "--rdzv-backend c10d" in script

"""`dvc plots` draws without a network."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from llm.errors import UserError
from llm.experiments import dvc_plots


def test_the_page_brings_its_scripts_and_keeps_dvcs_placeholders() -> None:
    page = dvc_plots.page()
    assert "{plot_divs}" in page
    assert "{refresh_tag}" in page
    assert "window.vegaEmbed=" in page
    assert not re.search(r"<script[^>]+src=", page)
    assert page.count("</script>") == 1


def test_dvc_fills_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["dvc", "init", "-q", "--no-scm"], check=True)
    dvc_plots.use_offline_page()
    Path("curve.csv").write_text("step,loss\n1,2.5\n2,1.5\n")
    subprocess.run(
        ["dvc", "plots", "show", "curve.csv", "-x", "step", "-y", "loss"],
        check=True,
        capture_output=True,
    )
    html = Path("dvc_plots/index.html").read_text()
    assert "cdn." not in re.sub(r"<script>.*?</script>", "", html, count=1, flags=re.S)
    assert html.count("vegaEmbed('#") == 1


def test_outside_a_repository_it_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no \.dvc here"):
        dvc_plots.use_offline_page()

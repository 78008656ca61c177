"""Presets are valid overlays, and merging one keeps the comments."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llm import params, preset
from llm.errors import UserError

ROOT = Path(__file__).parent.parent
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_gives_valid_params_and_keeps_comments(name: str, workspace: Path) -> None:
    before = (workspace / "params.yaml").read_text()
    preset.apply_preset(name)
    after = (workspace / "params.yaml").read_text()
    params.load(workspace / "params.yaml")
    assert before != after
    assert "# of the SwiGLU" in after
    preset.apply_preset(name)
    assert (workspace / "params.yaml").read_text() == after


def test_an_unknown_preset_names_the_known_ones(workspace: Path) -> None:
    with pytest.raises(UserError, match="cpu-hour"):
        preset.apply_preset("huge")


def test_an_unknown_key_is_refused_and_changes_nothing(workspace: Path) -> None:
    (workspace / "presets" / "odd.yaml").write_text("pretrain: {lerning_rate: 1}\n")
    before = (workspace / "params.yaml").read_bytes()
    with pytest.raises(UserError, match="did you mean learning_rate"):
        preset.apply_preset("odd")
    assert (workspace / "params.yaml").read_bytes() == before

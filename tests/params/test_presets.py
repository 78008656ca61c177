"""Presets are valid overlays, merging one keeps the comments, and each has a plan without data or
weights.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import yaml

from llm import params, plan
from llm.errors import UserError
from llm.parallel import hardware
from llm.params import presets
from llm.plan.gpus import GPUS, gpus
from llm.plan.show import show_plan

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
ON_GPUS = {
    "gpt2-small": ("a100-40gb", 1),
    "homework": ("a100-40gb", 1),
    "lora-7b": ("a100-40gb", 1),
    "1b-8gpu": ("h100", 8),
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hardware, "matmul_flops_per_second", lambda *_: 4e11)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_gives_valid_params_keeps_comments_and_is_taken_back_by_demo(
    name: str, workspace: Path
) -> None:
    path = workspace / "params.yaml"
    before = path.read_text()
    presets.apply_preset(name)
    after = path.read_text()
    params.load(path)
    assert (before == after) == (name == "demo")
    assert "# of the SwiGLU" in after
    presets.apply_preset(name)
    assert path.read_text() == after
    presets.apply_preset("demo")
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(before)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_a_plan_without_data_and_leaves_params_as_they_are(
    name: str, workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    before = (workspace / "params.yaml").read_bytes()
    gpu, count = ON_GPUS.get(name, (None, 1))
    show_plan(name=name, gpu=gpu, count=count, price=2.0)  # which also checks that it fits
    text = capsys.readouterr().out
    assert (workspace / "params.yaml").read_bytes() == before
    assert re.search(r"cost +about [\d,]+\.\d\d, [\d,]+\.\d GPU hours at 2\n", text)
    assert ("\npretrain\n" in "\n" + text) == (name != "lora-7b")


def test_what_changes_is_told_as_the_file_has_it(
    workspace: Path, capsys: pytest.CaptureFixture
) -> None:
    presets.apply_preset("clean")
    lines = capsys.readouterr().out.splitlines()
    assert "tokenize.clean.exact_duplicates: false → true" in lines
    assert "tokenize.clean.unicode: null → ftfy" in lines
    assert (
        'tokenize.clean.near_duplicates: null → {"threshold": 0.8, "num_perm": 128, "ngram": 5}'
        in lines
    )


def test_what_presets_fetch_is_pinned_to_whole_commits() -> None:
    for name in NAMES:
        text = (ROOT / "presets" / f"{name}.yaml").read_text()
        for revision in re.findall(r"revision: *(\S+)", text):
            assert re.fullmatch("[0-9a-f]{40}", revision), (name, revision)


def test_the_sizes_are_those_that_the_names_say(workspace: Path) -> None:
    def parameters(name: str, gpu: str) -> int:
        p = presets.params_with(name)
        machine = gpus(gpu, 1, "auto")
        return (plan.finetune_plan if name == "lora-7b" else plan.pretrain_plan)(
            p, machine=machine
        ).parameters

    assert parameters("gpt2-small", "l4") == pytest.approx(124e6, rel=0.01)
    assert (
        parameters("lora-7b", "a100-40gb") == 6_738_415_616 + 39_976_960
    )  # Llama 2 7B, and rank 16 on all matrices
    assert parameters("1b-8gpu", "h100") == pytest.approx(1.08e9, rel=0.01)


def test_more_gpus_share_the_work_and_a_smaller_one_is_refused(workspace: Path) -> None:
    p = presets.params_with("1b-8gpu")
    one, eight = (plan.pretrain_plan(p, machine=gpus("h100", n, "auto")) for n in (1, 8))
    assert eight.seconds == pytest.approx(one.seconds / 8, rel=0.01)
    assert eight.memory == one.memory
    with pytest.raises(UserError, match=r"lora|memory"):
        plan.finetune_plan(
            params.parse(_full(workspace)), machine=gpus("l4", 1, "auto")
        ).check()  # 7B in float32 with AdamW
    with pytest.raises(UserError, match="a100-40gb"):
        gpus("v100", 1, "auto")
    assert all(rate > 1e14 and memory >= 24 for _, rate, memory in GPUS.values())


def _full(workspace: Path) -> dict:
    presets.apply_preset("lora-7b")
    data = yaml.safe_load((workspace / "params.yaml").read_text())
    data["finetune"]["method"] = "full"
    return data


def test_a_base_that_is_not_here_names_the_way_to_fetch_it(workspace: Path) -> None:
    (workspace / "presets" / "shapes" / "llama-2-7b.json").unlink()
    with pytest.raises(UserError, match="dvc repro checkpoint@llama-2-7b"):
        show_plan(name="lora-7b", gpu="h100")


def test_an_unknown_preset_names_the_known_ones(workspace: Path) -> None:
    with pytest.raises(UserError, match="cpu-hour"):
        presets.apply_preset("huge")


def test_an_unknown_key_is_refused_and_changes_nothing(workspace: Path) -> None:
    (workspace / "presets" / "odd.yaml").write_text("pretrain: {lerning_rate: 1}\n")
    before = (workspace / "params.yaml").read_bytes()
    with pytest.raises(UserError, match="did you mean learning_rate"):
        presets.apply_preset("odd")
    assert (workspace / "params.yaml").read_bytes() == before

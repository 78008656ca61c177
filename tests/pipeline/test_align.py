"""Training on preferences: the folder's pipeline end to end, and the same bytes after kills."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from llm.model.hf_files import load_model
from llm.model.lora_files import PREFIX
from tests.pipeline.torture import Victims, torture
from tests.pipeline.workspace import copy, run

KILLS = 6


@pytest.fixture(scope="module")
def victim(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victims]:
    """A checkout with a finetuned model and pairs of its answers."""
    root = copy(first, tmp_path_factory.mktemp("align") / "checkout", {"align": {"method": "dpo"}})
    shutil.copytree(first / "models", root / "models")
    victims = Victims(root)
    victims.run("preferences")
    yield victims
    victims.close()


def test_a_killed_run_ends_with_the_same_bytes(victim: Victims) -> None:
    hits, differences = torture("align", victim, KILLS)
    assert differences == []
    assert len(hits) >= KILLS
    figures = json.loads((victim.root / "metrics/align.json").read_text())
    assert {"method", "pairs", "reward_margin", "accuracy", "kl", "steps"} <= set(figures)
    assert figures["steps"] > 1
    # It learned: the chosen answers of the training pairs have become likelier than the rejected.
    assert figures["train_loss"] < 0.6931


def test_pairs_are_the_models_own_answers_and_their_manifest_counts_all_prompts(
    victim: Victims,
) -> None:
    folder = victim.root / "data/preferences"
    manifest = json.loads((folder / "manifest.json").read_text())
    sides = {
        side: pq.read_table(folder / f"{side}.parquet").to_pylist() for side in ("train", "val")
    }
    assert {side: len(rows) for side, rows in sides.items()} == manifest["pairs"]
    pairs = sum(manifest["pairs"].values())
    assert pairs + sum(manifest["without_a_pair"].values()) == manifest["prompts"]
    assert manifest["answers"] == 12 * manifest["prompts"]
    train = pq.read_table(victim.root / "data/mix/train.parquet").to_pylist()
    prompts = {row["id"]: row["prompt"] for row in train}
    for row in (*sides["train"], *sides["val"]):
        assert row["prompt"] == prompts[row["id"]]
        assert row["chosen_score"] - row["rejected_score"] >= 0.01


def test_the_adapter_is_pefts_and_the_aligned_model_is_the_base_with_it_merged(
    victim: Victims,
) -> None:
    adapter = load_file(victim.root / "models/aligned_adapter/adapter_model.safetensors")
    base, aligned = (
        load_model(victim.root / "models" / name).state_dict() for name in ("finetuned", "aligned")
    )
    name = "model.layers.0.mlp.up_proj"
    a, b = (adapter[f"{PREFIX}{name}.lora_{side}.weight"].double() for side in "AB")
    expected = base[f"{name}.weight"].double() + b @ a * (64 / 4)
    assert b.abs().max() > 0
    torch.testing.assert_close(aligned[f"{name}.weight"].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_an_experiment_aligns_and_scores_both_models(first: Path, tmp_path: Path) -> None:
    """Slow: its siblings are the tests above, which run the stages without DVC."""
    root = copy(first, tmp_path / "checkout")
    refused = run(root, "dvc", "repro", "align/dvc.yaml", check=False)
    assert refused.returncode != 0
    assert "set align.method to dpo, ipo, orpo or simpo" in refused.stdout + refused.stderr
    options = ("-S", "align.method=simpo", "-n", "aligned", "align/dvc.yaml")
    printed = run(root, "dvc", "exp", "run", *options, timeout=500).stdout
    assert "align: simpo on" in printed
    scores = json.loads((root / "metrics/aligned/evaluate.json").read_text())
    assert set(scores) >= {"before", "aligned"}
    evaluated = json.loads((root / "metrics/evaluate.json").read_text())
    for task in ("question_answering", "summarization"):
        assert scores["before"][task] == evaluated["finetuned"][task]
    comparison = json.loads((root / "metrics/aligned/comparison.json").read_text())
    assert {"f1", "exact_match"} <= set(comparison["question_answering"])
    assert "Data and pipelines are up to date" in run(root, "dvc", "repro", "align/dvc.yaml").stdout
    run(root, "dvc", "repro", "--single-item", "--force", "report")
    for name in ("report.html", "report.md"):
        page = (root / "metrics/report" / name).read_text()
        assert "Training on preferences" in page
        assert "simpo on" in page

"""The DAG itself, on a tiny configuration of real text."""

from __future__ import annotations

import csv
import json
import shutil
import sqlite3
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from llm.experiments.revisions import Revision
from tests.pipeline.workspace import ROOT, copy, run

NOT_REPRODUCED = {"metrics/report"}  # states times and the MLflow run


def hashes(root: Path, commit: str | None = None) -> dict[str, str]:
    """Of the outputs in dvc.lock, as it lies there or as a commit has it."""
    text = (
        run(root, "git", "show", f"{commit}:dvc.lock").stdout
        if commit
        else (root / "dvc.lock").read_text()
    )
    lock = yaml.safe_load(text)
    return {
        out["path"]: out["md5"]
        for stage in lock["stages"].values()
        for out in stage.get("outs", [])
        if out["path"] not in NOT_REPRODUCED
    }


def test_a_second_repro_runs_nothing(first: Path) -> None:
    assert "Data and pipelines are up to date" in run(first, "dvc", "repro").stdout


def test_the_status_of_the_seven_stages_is_clean_and_only_what_is_made_on_demand_is_not(
    first: Path,
) -> None:
    assert (
        run(first, "dvc", "status", "dvc.yaml").stdout.strip()
        == "Data and pipelines are up to date."
    )
    shown = json.loads(run(first, "dvc", "status", "--json").stdout)
    assert {name.split(":")[0] for name in shown} == {
        f"{folder}/dvc.yaml" for folder in ("align", "scaling", "techniques")
    }


@pytest.mark.slow
def test_another_checkout_gives_the_same_bytes(first: Path, prepared: Path, tmp_path: Path) -> None:
    """`prepared` ran the first stages elsewhere, with another hash seed, in processes of their own; a
    copy of it runs the rest.

    Slow: its sibling is "repro" in test_kill_dvc.py, which compares two checkouts of `prepared`.
    """
    second = copy(prepared, tmp_path / "elsewhere")
    run(second, "dvc", "repro", timeout=500, fresh=True, PYTHONHASHSEED="7")
    assert hashes(second) == hashes(first)
    assert len(hashes(first)) == 19


def test_shards_are_what_the_meta_file_says(first: Path) -> None:
    meta = json.loads((first / "data/tokens/meta.json").read_text())
    for split in ("train", "val"):
        arrays = [
            np.load(first / "data/tokens" / s["file"], mmap_mode="r") for s in meta[split]["shards"]
        ]
        assert all(a.ndim == 1 and a.dtype == np.uint16 for a in arrays)
        assert sum(map(len, arrays)) == meta[split]["tokens"]
        assert sum(int((a == meta["eos_id"]).sum()) for a in arrays) == meta[split]["documents"]
    assert meta["val"]["documents"] > 0


def test_tables_show_a_dozen_numbers_and_the_rest_is_in_files(first: Path) -> None:
    summary = json.loads((first / "metrics/summary.json").read_text())
    scores = json.loads((first / "metrics/evaluate.json").read_text())["finetuned"]
    assert summary["question_answering_f1"] == scores["question_answering"]["f1"]["value"]
    assert (
        summary["pretrain_val_loss"]
        == json.loads((first / "metrics/pretrain.json").read_text())["val_loss"]
    )
    assert 8 <= len(summary) <= 12
    assert all(type(value) in (int, float) for value in summary.values())
    shown = run(first, "dvc", "metrics", "show", "--json").stdout
    assert json.loads(shown)[""]["data"] == {"metrics/summary.json": {"data": summary}}
    header, *_ = run(first, "dvc", "metrics", "show").stdout.splitlines()
    assert len(header) < 400
    tracked = run(first, "git", "ls-files", "metrics").stdout.split()
    assert tracked == ["metrics/summary.json"]


def test_metrics_have_the_promised_keys(first: Path) -> None:
    def read(name: str) -> dict:
        return json.loads((first / "metrics" / name).read_text())

    promised = {
        "pretrain.json": "val_loss val_bits_per_byte val_perplexity parameters tokens steps flops",
        "finetune.json": "val_loss trainable_parameters trainable_fraction examples steps",
        "timing/pretrain.json": "seconds tokens_per_second mfu peak_memory_bytes device",
        "timing/evaluate.json": "seconds peak_memory_bytes device",
    }
    for name, keys in promised.items():
        assert set(keys.split()) <= set(read(name)), name
    scores = read("evaluate.json")
    for model in ("base", "finetuned"):
        assert {"rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "mean_length"} <= set(
            scores[model]["summarization"]
        )
        assert {"exact_match", "f1"} <= set(scores[model]["question_answering"])
        assert {"accuracy", "mcc"} <= set(scores[model]["classification"])
        assert {"perplexity", "bits_per_byte"} <= set(scores[model]["language_modeling"])
    for name, task in [
        ("lead", "summarization"),
        ("random", "question_answering"),
        ("sliding_window", "question_answering"),
        ("majority", "classification"),
        ("zstd", "language_modeling"),
    ]:
        for score in scores[f"baseline:{name}"][task].values():
            assert set(score) == {"value", "low", "high", "n", "signature"}
    assert all(0 <= share <= 1 for share in scores["contamination"].values())


def test_base_and_finetuned_load_in_transformers_and_differ(first: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    texts = []
    for name in ("base", "finetuned"):
        model = transformers.AutoModelForCausalLM.from_pretrained(first / "models" / name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(first / "models" / name)
        ids = model.generate(**tokenizer("Return the", return_tensors="pt"), max_new_tokens=5)
        texts.append((tokenizer.decode(ids[0]), model.model.layers[0].self_attn.q_proj.weight))
        assert texts[-1][0].startswith("Return the")
    assert not texts[0][1].equal(texts[1][1])


def test_the_adapter_in_peft_equals_the_merged_model(first: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    import torch

    base = transformers.AutoModelForCausalLM.from_pretrained(first / "models/base")
    adapted = peft.PeftModel.from_pretrained(base, first / "models/adapter").eval()
    merged = transformers.AutoModelForCausalLM.from_pretrained(first / "models/finetuned").eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)


def test_sides_of_the_mixture_share_no_prompt(first: Path) -> None:
    mix = first / "data/mix"
    prompts = {
        side: set(pq.read_table(mix / f"{side}.parquet")["prompt"].to_pylist()) - {""}
        for side in ("train", "val")
    }
    assert not prompts["train"] & prompts["val"]
    for path in (mix / "test").glob("*.parquet"):
        assert not prompts["train"] & set(pq.read_table(path)["prompt"].to_pylist()), path


def test_predictions_are_kept_for_every_model_and_task(first: Path) -> None:
    names = {path.stem for path in (first / "metrics/predictions").glob("*.parquet")}
    for model in ("base", "finetuned"):
        for task in ("summarization", "question_answering", "classification"):
            assert f"{model}-{task}" in names
            table = pq.read_table(first / "metrics/predictions" / f"{model}-{task}.parquet")
            assert {"id", "prompt", "prediction", "references"} <= set(table.column_names)


def test_the_report_is_one_file_with_the_scores_in_it(first: Path) -> None:
    page = (first / "metrics/report/report.html").read_text()
    assert "<script src" not in page
    assert 'href="http' not in page.split("<body")[0]
    loss = json.loads((first / "metrics/pretrain.json").read_text())["val_loss"]
    assert f"{loss:.2f}" in page
    assert (first / "metrics/report/report.md").exists()


def runs(root: Path) -> dict[str, set[str]]:
    """Metric names of each finished MLflow run."""
    with sqlite3.connect(root / "mlflow.db") as store:
        rows = store.execute(
            "select r.name, m.key from runs r join metrics m on r.run_uuid = m.run_uuid where r.status = 'FINISHED'"
        ).fetchall()
    found: dict[str, set[str]] = {}
    for name, key in rows:
        found.setdefault(name, set()).add(key)
    return found


def test_an_experiment_reruns_three_stages_and_has_a_complete_run(
    first: Path, small_rank: CompletedProcess[str]
) -> None:
    before = hashes(first, "HEAD")
    log = small_rank.stdout + small_rank.stderr
    ran = [line.split("'")[1] for line in log.splitlines() if line.startswith("Running stage")]
    assert ran == ["finetune", "evaluate", "report"]
    after = hashes(first)
    changed = {path for path in after if after[path] != before[path]}
    assert {
        "models/adapter",
        "models/finetuned",
        "metrics/finetune.json",
        "metrics/evaluate.json",
    } <= changed
    assert not {"models/base", "data/mix", "data/tokens"} & changed
    found = runs(first)
    assert len(found) == 2
    workspace = next(keys for name, keys in found.items() if name != "small-rank")
    timings = {
        f"{t.stem}/{k}"
        for t in (first / "metrics/timing").glob("*.json")
        for k in json.loads(t.read_text())
    }
    assert (
        workspace - timings == found["small-rank"] - timings
    )  # times are of the stages that ran, and of those only
    assert {"pretrain/loss", "pretrain/val_loss", "finetune/loss"} <= found["small-rank"]
    with (first / "metrics/pretrain_history.csv").open() as file:
        steps = sum(1 for _ in csv.DictReader(file))
    with sqlite3.connect(first / "mlflow.db") as store:
        (points,) = store.execute(
            "select count(*) from metrics m join runs r on r.run_uuid = m.run_uuid "
            "where r.name = 'small-rank' and m.key = 'pretrain/loss'"
        ).fetchone()
    assert points == steps


def test_curves_in_mlflow_end_with_the_final_value_and_have_no_other_axis(first: Path) -> None:
    with sqlite3.connect(first / "mlflow.db") as store:
        rows = store.execute(
            "select run_uuid, key, step, value from metrics where key like '%/val_loss'"
        ).fetchall()
    for stage in ("pretrain", "finetune"):
        with (first / f"metrics/{stage}_history.csv").open() as file:
            history = [
                (int(row["tokens"]), float(row["val_loss"]))
                for row in csv.DictReader(file)
                if row["val_loss"]
            ]
        assert len(history) > 1
        ids = {id for id, *_ in rows}
        curves = [
            sorted(
                (step, x) for id, key, step, x in rows if (id, key) == (one, f"{stage}/val_loss")
            )
            for one in ids
        ]
        assert history in curves, stage


@pytest.mark.slow
def test_a_temporary_experiment_lands_in_the_same_store(first: Path) -> None:
    """Slow: its sibling is test_a_temporary_workspace_lands_in_the_main_store of tests/tracking."""
    run(first, "git", "checkout", "-q", "params.yaml")
    run(
        first,
        "dvc",
        "exp",
        "run",
        "--temp",
        "-S",
        "evaluate.examples=4",
        "-n",
        "elsewhere",
        timeout=500,
    )
    assert "elsewhere" in runs(first)
    shown = run(first, "dvc", "exp", "show", "--csv").stdout
    assert "elsewhere" in shown


def test_make_runs_shows_experiments_of_earlier_commits_too(
    first: Path, small_rank: CompletedProcess[str]
) -> None:
    run(first, "git", "commit", "-qm", "another", "--allow-empty")
    shutil.copyfile(ROOT / "Makefile", first / "Makefile")
    done = run(first, "make", "runs", "--assume-old", ".venv/.run")
    assert "small-rank" in done.stdout
    assert "summarization_rougeLsum" in done.stdout or "finetune_val_loss" in done.stdout
    assert "small-rank" not in run(first, "dvc", "exp", "show").stdout, "DVC alone shows none"
    (first / "Makefile").unlink()
    # Experiments that were compared before are compared by name, whatever is checked out.
    with Revision("small-rank", first) as revision:
        assert revision.json("metrics/evaluate.json")["finetuned"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("model.hidden_size=31", "must be divisible"),
        # Slow: the same message's other half; tests/params/test_read.py reads both in one process.
        pytest.param("pretrain.learning_rate=-1", "greater than 0", marks=pytest.mark.slow),
    ],
)
def test_an_impossible_value_ends_in_one_message(first: Path, change: str, expected: str) -> None:
    done = run(first, "dvc", "exp", "run", "--temp", "-S", change, check=False)
    assert done.returncode != 0
    assert expected in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_dead_tracking_server_does_not_stop_training(first: Path) -> None:
    done = run(
        first,
        "python",
        "-m",
        "stages.pretrain",
        MLFLOW_TRACKING_URI="http://127.0.0.1:9",
        DVC_ROOT=str(first / "elsewhere"),
        timeout=200,
    )
    assert (done.stdout + done.stderr).lower().count("mlflow") >= 1
    assert "validation loss" in done.stdout

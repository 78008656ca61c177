"""The techniques stage measures what it says, on a tiny model, and its sentences follow the
figures.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llm import params
from llm.errors import UserError
from llm.experiments.techniques import measure, run
from llm.experiments.techniques.rows import TECHNIQUES, chosen, settings_of
from llm.model.hf_files import save_model
from llm.report import techniques as told
from llm.report.page import write_report
from llm.tokenizer.bpe import Tokenizer
from tests.model.conftest import random_model
from tests.report import workspace

STEPS = 4
MEASURED = (
    "full",
    "bf16",
    "accumulation",
    "checkpointing",
    "both",
    "lora-full",
    "lora",
    "dora",
    "ia3",
    "qlora",
)  # the others combine these


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base of two layers, examples, and params that fit them."""
    root = tmp_path_factory.mktemp("techniques")
    workspace.minimal(root)
    text = (root / "params.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("batch_tokens: 2048 ", "batch_tokens: 512"),
        ("r: 32   ", "r: 4"),
        ("  sequence_length: 512         # tokens of a packed row", "  sequence_length: 128 # "),
        ("max_tokens: 384", "max_tokens: 100"),
        (
            "  optimizer: muon\n  learning_rate: 0.004\n",
            "  optimizer: adamw\n  learning_rate: 0.002\n",
        ),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (root / "params.yaml").write_text(text, encoding="utf-8")
    base = root / "models" / "base"
    base.mkdir(parents=True)
    words = ["cat", "dog", "mat", "sat", "on", "the", "and"]
    tokenizer = Tokenizer.train([" ".join(words) * 3], 290)
    save_model(
        random_model(0, num_hidden_layers=4, max_position_embeddings=128),
        base,
        base,
        tokenizer.eos_id,
    )
    tokenizer.save(base)
    (root / "data" / "mix").mkdir(parents=True)
    for name, count in (("train", 120), ("val", 20)):
        rows = [
            {
                "id": str(i),
                "task": "copy",
                "prompt": f"say {words[i % 7]} " * 8,
                "response": f"{words[i % 7]} " * 3,
            }
            for i in range(count)
        ]
        pq.write_table(pa.Table.from_pylist(rows), root / "data" / "mix" / f"{name}.parquet")
    return root


@pytest.fixture(scope="module")
def rows(root: Path) -> dict[str, dict[str, Any]]:
    """Figures of techniques, measured in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("LLM_DEVICE", "cpu")
        patch.setenv("DVC_ROOT", str(root))
        p = params.load()
        return {
            t.name: measure.measure(p, t.name, STEPS)
            for t in chosen(p.finetune)[0]
            if t.name in MEASURED
        }


def parts(rows: dict[str, dict[str, Any]], part: str, *names: str) -> list[int]:
    return [rows[name]["memory"][part] for name in names]


def test_memory_is_what_the_tensors_are(rows: dict[str, dict[str, Any]]) -> None:
    for name, row in rows.items():
        memory = row["memory"]
        assert memory["gradients"] == 4 * row["trainable_parameters"], name
        assert memory["optimizer"] == pytest.approx(2 * memory["gradients"], rel=0.02), (
            name
        )  # AdamW's two moments
        assert row["peak_bytes"] == sum(memory.values())
    assert parts(rows, "weights", "full", "bf16") == [4 * rows["full"]["parameters"]] * 2
    lora = rows["lora-full"]
    assert lora["memory"]["weights"] == 4 * (lora["parameters"] + lora["trainable_parameters"])


def test_each_technique_saves_the_part_that_it_is_for(rows: dict[str, dict[str, Any]]) -> None:
    full, bf16, pieces, again, both = parts(
        rows, "activations", "full", "bf16", "accumulation", "checkpointing", "both"
    )
    assert bf16 < 0.9 * full
    assert pieces < 0.5 * bf16
    assert again < 0.8 * bf16
    assert both < min(pieces, again)
    assert [rows[name]["rows"] for name in ("bf16", "accumulation")] == [4, 1]
    for part in ("gradients", "optimizer"):
        whole, adapter = parts(rows, part, "full", "lora-full")
        assert adapter < 0.3 * whole
    trained = [rows[name]["trainable_parameters"] for name in ("ia3", "lora", "dora")]
    assert trained == sorted(set(trained))
    if "qlora" in rows:
        lora, quantized = parts(rows, "weights", "lora-full", "qlora")
        assert quantized < lora


def test_what_changes_memory_alone_changes_no_loss(rows: dict[str, dict[str, Any]]) -> None:
    before = rows["full"]["loss_before"]
    assert all(row["loss"] < before for row in rows.values())
    for name in ("accumulation", "checkpointing", "both"):
        assert rows[name]["loss"] == pytest.approx(rows["bf16"]["loss"], rel=2e-3)


def test_a_row_is_measured_in_a_process_of_its_own(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    monkeypatch.setenv("LLM_DEVICE", "cpu")
    settings = params.load().finetune
    monkeypatch.setattr(
        run, "chosen", lambda s: ([t for t in TECHNIQUES if t.name == "lora"], ["QLoRA: absent"])
    )
    found = run.measure_all(settings, STEPS)
    assert [row["name"] for row in found["rows"]] == ["lora"]
    assert found["rows"][0]["process_peak_bytes"] > 50_000_000
    assert found["left_out"] == ["QLoRA: absent"]
    monkeypatch.chdir(root.parent)  # no params.yaml here
    with pytest.raises(UserError, match=r"LoRA \+ bf16 could not be measured"):
        run.measure_all(settings, STEPS)


def test_rows_that_cannot_be_measured_are_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = params.load(workspace.REPOSITORY / "params.yaml").finetune
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    single = settings.model_copy(update={"batch_tokens": settings.sequence_length})
    found, left_out = chosen(single)
    assert all(t.method != "qlora" and t.rows is None for t in found)
    assert [reason.split(":")[0] for reason in left_out] == ["QLoRA", "accumulation"]


def test_lora_has_ten_times_the_rate_of_full_finetuning() -> None:
    settings = params.load(workspace.REPOSITORY / "params.yaml").finetune
    rate = settings.learning_rate
    for method, expected in (("lora", (rate / 10, rate)), ("full", (rate, 10 * rate))):
        given = settings.model_copy(update={"method": method})
        rates = {t.method: settings_of(t, given).learning_rate for t in TECHNIQUES}
        assert (rates["full"], rates["lora"]) == pytest.approx(expected)


# -- sentences

BASE: dict[str, Any] = {
    "label": "bf16", "memory": {"weights": 400e6, "gradients": 400e6, "optimizer": 800e6, "activations": 1e9},
    "peak_bytes": 2.6e9, "step_seconds": 2.0, "loss": 2.0, "parameters": 100_000_000,
    "trainable_parameters": 100_000_000, "rows": 4, "batch_rows": 4, "activation_type": "bfloat16",
    "checkpointing": False, "method": "full",
}  # fmt: skip


def changed(memory: dict[str, float], **changes: Any) -> dict[str, Any]:
    parts = {**BASE["memory"], **memory}
    return {**BASE, "memory": parts, "peak_bytes": sum(parts.values()), **changes}


def test_a_sentence_says_what_moved_and_by_what_means() -> None:
    again = changed({"activations": 0.25e9}, checkpointing=True, step_seconds=2.6)
    assert told.sentence(again, BASE) == (
        "Compared with bf16, it takes 0.71 times the memory "
        "(activations 1.00 GB → 250.0 MB: the layers' are "
        "computed again instead of being kept), 1.30 times the time a step, and reaches the same loss within 1 %."
    )
    lora = {"weights": 404e6, "gradients": 4e6, "optimizer": 8e6}
    adapter = changed(
        lora, method="lora", trainable_parameters=1_000_000, loss=2.2, step_seconds=1.5
    )
    assert told.sentence(adapter, BASE) == (
        "Compared with bf16, it takes 0.54 times the memory "
        "(optimizer state 800.0 MB → 8.0 MB, gradients 400.0 MB → 4.0 MB: 1.0 % of "
        "the parameters are trained), 0.75 times the time a step, and reaches a loss 10 % higher."
    )
    assert told.sentence(BASE, None) == "The activations take the largest share of memory, 38 %."


def test_a_technique_that_bought_nothing_is_said_not_to_pay() -> None:
    useless = changed({"activations": 1.01e9}, checkpointing=True, step_seconds=2.4)
    assert told.sentence(useless, BASE) == (
        "Compared with bf16, it takes the same memory, 1.20 times the time a step, and reaches the same loss "
        "within 1 %. Here it does not pay."
    )


def test_the_report_has_the_table_and_the_figure_only_where_it_was_measured(
    root: Path, rows: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.full(tmp_path)
    monkeypatch.chdir(tmp_path)
    for measured in (False, True):
        if measured:
            found = {
                "steps": STEPS,
                "rows": list(rows.values()),
                "left_out": ["X: <absent>"],
                "device": "a | device",
            }
            (tmp_path / told.PATH).write_text(json.dumps(found))
        shutil.rmtree("out", ignore_errors=True)
        (tmp_path / "out").mkdir()
        write_report(params.load(), tmp_path / "out")
        assert (tmp_path / "out" / "figures" / "techniques.svg").is_file() == measured
        for name in ("report.html", "report.md"):
            text = (tmp_path / "out" / name).read_text(encoding="utf-8")
            assert ("Effect of each training technique" in text) == measured
            assert ("Compared with full precision, it takes" in text) == measured
    assert "X: &lt;absent&gt;" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_plain_repro_leaves_the_stage_out_and_its_files_are_there() -> None:
    repository = workspace.REPOSITORY
    assert (
        "techniques"
        not in yaml.safe_load((repository / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    )
    stage = yaml.safe_load((repository / "techniques" / "dvc.yaml").read_text(encoding="utf-8"))[
        "stages"
    ]["techniques"]
    code = [path for path in stage["deps"] if path.startswith(("stages", "llm"))]
    assert len(code) >= 6
    assert [path for path in code if not (repository / path).exists()] == []

"""EleutherAI's lm-eval, on our model directories and test files, finds what we find (the YAML is
that of the docs).
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from llm.evaluate import answers as run
from llm.evaluate import language, test_sets
from llm.model.hf_files import load_model, save_model
from llm.tokenizer.bpe import Tokenizer
from tests.conftest import ROOT
from tests.evaluate.standins import held_out_text
from tests.model.conftest import random_model

pytest.importorskip("lm_eval", reason="needs the extra `peers`")

WORDS = [
    "the",
    "array",
    "table",
    "of",
    "a",
    "given",
    "shape",
    "returns",
    "largest",
    "value",
    "column",
    "name",
]
LABELS = ["numpy", "pandas frame", "torch"]


def documented_tasks() -> dict[str, dict[str, Any]]:
    """The lm-eval tasks of docs/EVALUATION.md, by name."""
    text = (ROOT / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```yaml\n(task: .*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    return {task["task"]: task for task in map(yaml.safe_load, blocks)}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory as the pipeline writes it, a test file of a classification, and held-out
    documents.
    """
    path = tmp_path_factory.mktemp("lm_eval")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(5, 30))) for _ in range(60)]
    tokenizer = Tokenizer.train([*texts, *LABELS], 320)
    tokenizer.save(path / "tokenizer")
    model = random_model(
        vocab_size=tokenizer.vocab_size, max_position_embeddings=128, tie_word_embeddings=False
    )
    (path / "models/finetuned").mkdir(parents=True)
    save_model(model, path / "models/finetuned", path / "tokenizer", tokenizer.eos_id)
    rows = [
        {"id": str(i), "kind": "classification", "prompt": f"{text}\n\nWhich library?", "references": [label],
         "truncated": False, "text": text, "choices": LABELS, "label": label}
        for i, (text, label) in enumerate(zip(texts, LABELS * 20, strict=True))
    ]  # fmt: skip
    (path / "data/mix/test").mkdir(parents=True)
    test_sets.write_columns(
        path / "data/mix/test/classification.parquet",
        {name: [row[name] for row in rows] for name in rows[0]},
    )
    # One text: lm-eval begins it after an end token, as our stream does where its first document is
    # empty. It fills
    # whole windows: lm-eval gives a shorter last one the context before it, ours begins every
    # window afresh.
    predicted = sum(len(tokenizer.encode(document)) + 1 for document in texts)
    texts.append(
        "1" * (-(predicted + 1) % 128)
    )  # digits are in no text that the tokenizer saw: a token each
    text = "".join(f"{document}<|endoftext|>" for document in texts)
    (path / "held_out.jsonl").write_text(json.dumps({"text": text}) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def theirs(workspace: Path) -> dict[str, dict[str, float]]:
    """Results of lm-eval, by task."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_DATASETS_CACHE", str(workspace / "cache"))
        patch.setenv("TQDM_DISABLE", "1")
        patch.chdir(workspace)
        for name, task in documented_tasks().items():
            (workspace / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
        model = HFLM(pretrained="models/finetuned", dtype="float32", batch_size=8, device="cpu")
        manager = TaskManager(include_path=str(workspace), include_defaults=False)
        found = simple_evaluate(
            model, tasks=list(documented_tasks()), task_manager=manager, bootstrap_iters=0
        )
    return {name: dict(scores) for name, scores in found["results"].items()}


def test_accuracy_is_lm_evals_to_the_last_example(
    workspace: Path, theirs: dict[str, dict[str, float]]
) -> None:
    tokenizer = Tokenizer.load(workspace / "models/finetuned")
    (test,) = test_sets.read_tests(workspace / "data/mix/test", None)
    answers = run.answer(
        load_model(workspace / "models/finetuned"), tokenizer, test, run.Asking(chat=True)
    )
    accuracy = run.measures(test, answers.texts, answers.form)[0].value()
    assert theirs["our_classification"]["acc,none"] == accuracy
    assert 0 < accuracy < 1


def test_bits_of_held_out_text_are_lm_evals_to_five_digits(
    workspace: Path, theirs: dict[str, dict[str, float]]
) -> None:
    directory = workspace / "models/finetuned"
    tokenizer = Tokenizer.load(directory)
    text = json.loads((workspace / "held_out.jsonl").read_text(encoding="utf-8"))["text"]
    documents = ["", *text.split("<|endoftext|>")[:-1]]
    sample = held_out_text(documents, tokenizer=tokenizer)
    found = language.language_modeling(load_model(directory), sample, tokenizer)
    bits = float(found.nats.sum()) / math.log(2)
    # lm-eval divides by all bytes of the text, the end tokens' names among them; the bits are the
    # same.
    expected = theirs["our_held_out_text"]["bits_per_byte,none"] * len(text.encode())
    assert bits == pytest.approx(expected, rel=1e-5)
    assert set(found.tokens.tolist()) == {128}


def test_the_test_file_is_read_by_other_tools_as_it_is(workspace: Path) -> None:
    names = pq.read_schema(workspace / "data/mix/test/classification.parquet").names
    assert {"prompt", "choices", "label"} <= set(names)

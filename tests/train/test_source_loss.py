"""The losses of a mixture's sources are those of its whole validation text, told apart."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from llm.data.shards import TokenStream
from llm.data.val_sources import VALIDATION, validation_sources
from llm.data.windows import TokenWindows
from llm.errors import UserError
from llm.runtime.io import write_json
from llm.sources.raw import Writer
from llm.train.source_loss import SourceLabels, SourceWindows
from stages import pretrain, tokenize
from tests.stages.test_tokenize import one_task

ROOT = Path(__file__).parents[2]


def stream(folder: Path, documents: list[list[int]], eos: int) -> TokenStream:
    ids = np.array([i for document in documents for i in [*document, eos]], dtype=np.uint16)
    np.save(folder / "val-00000.npy", ids)
    entry = {"tokens": len(ids), "documents": len(documents), "bytes": 1}
    meta = {"val": {**entry, "shards": [{"file": "val-00000.npy", "tokens": len(ids)}]}}
    write_json(
        folder / "meta.json", {**meta, "dtype": "uint16", "eos_id": eos, "vocab_size": eos + 1}
    )
    return TokenStream(folder, "val")


@pytest.mark.parametrize("length", [8, 13, 1000])
@pytest.mark.parametrize("across", [True, False])
def test_every_predicted_token_belongs_to_the_source_of_its_document(
    tmp_path: Path, length: int, across: bool
) -> None:
    rng = np.random.default_rng(0)
    sources = rng.integers(0, 3, size=40).astype(np.uint16)
    # A token says whose it is: 10 · source + something.
    documents = [(10 * s + rng.integers(0, 10, size=rng.integers(0, 30))).tolist() for s in sources]
    windows = TokenWindows(stream(tmp_path, documents, 99), length, across, partial=True)
    labels = SourceLabels.of(windows, sources)
    total = 0
    for source in range(3):
        data = SourceWindows(windows, labels, source)
        ids = np.arange(data.num_rows)
        targets = data.rows(ids).targets
        assert (data.label_counts(ids) == (targets != -100).sum(1)).all()
        assert set((targets[(targets != -100) & (targets != 99)] // 10).tolist()) <= {source}
        assert (targets == 99).sum() == sum(s == source for s in sources)
        total += data.predicted
    assert total == windows.predicted


def test_pretrain_states_the_loss_of_each_source_and_they_add_up_to_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = {"easy": ["la"] * 3, "hard": [f"w{i}" for i in range(300)]}
    rng = np.random.default_rng(0)
    with Writer(Path("data/raw/pretrain"), "pretrain") as writer:
        for i in range(400):
            name = ("easy", "hard")[i % 2]
            text = " ".join(rng.choice(words[name], size=40)) + f" {i}"
            writer.write({"id": f"{name}/{i}", "text": text, "source": name, "group": ""})
    manifest = {"name": "pretrain", "rows": writer.rows, "bytes": writer.bytes}
    write_json(
        "data/raw/pretrain/manifest.json",
        manifest | {"sources": {n: {"weight": 0.5} for n in words}},
    )
    p = yaml.safe_load((ROOT / "params.yaml").read_text())
    p["tokenize"] |= {"vocab_size": 400, "val_fraction": 0.2}
    p["tokenize"]["clean"]["decontaminate"] = False  # every easy text shares 13 words with another
    p["model"] |= {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    p["model"] |= {"num_key_value_heads": 1, "head_dim": 16}
    p["pretrain"] |= {
        "tokens": 8_000,
        "batch_tokens": 512,
        "sequence_length": 64,
        "induction_init": False,
    }
    one_task(Path(), p)
    p["pretrain"] |= {"eval_tokens": 1500, "eval_every": 10}
    Path("params.yaml").write_text(yaml.safe_dump(p))
    tokenize.main()
    counts = json.loads(Path("metrics/tokenize.json").read_text())
    assert list(counts["sources"]) == ["easy", "hard"]
    for key in ("tokens", "documents", "bytes"):
        for split in ("train", "val"):
            assert (
                sum(s[f"{split}_{key}"] for s in counts["sources"].values())
                == counts[f"{split}_{key}"]
            )
    assert sum(s["share_of_train_tokens"] for s in counts["sources"].values()) == pytest.approx(1)
    names, places, sizes = validation_sources(
        Path("data/tokens"), TokenStream("data/tokens", "val")
    )
    assert names == ["easy", "hard"]
    assert sizes == [counts["sources"][name]["val_bytes"] for name in names]

    pretrain.main()
    found = json.loads(Path("metrics/pretrain.json").read_text())
    losses, bits = found["val_loss_by_source"], found["val_bits_per_byte_by_source"]
    assert losses["easy"] < losses["hard"] - 0.5
    predicted = {
        name: bits[name] * math.log(2) * size / losses[name]
        for name, size in zip(names, sizes, strict=True)
    }
    whole = sum(losses[name] * predicted[name] for name in names) / sum(predicted.values())
    assert sum(predicted.values()) == pytest.approx(counts["val_tokens"] - 1)
    assert whole == pytest.approx(found["val_loss"], rel=1e-3)

    read = found["quick_validation"]
    assert read["of"]["documents"] == counts["val_documents"] > read["documents"]
    assert read["tokens"] == pytest.approx(1500, rel=0.1)
    for name in names:
        share = counts["sources"][name]["val_tokens"] / counts["val_tokens"]
        assert read["sources"][name]["tokens"] == pytest.approx(1500 * share, rel=0.2)

    np.save(Path("data/tokens") / VALIDATION, places[:-1])
    with pytest.raises(UserError, match=r"val_sources\.npy has .* documents, but the shards have"):
        validation_sources(Path("data/tokens"), TokenStream("data/tokens", "val"))


def test_a_corpus_that_is_no_mixture_has_no_sources(tmp_path: Path) -> None:
    val = stream(tmp_path, [[1, 2, 3]], 99)
    assert validation_sources(tmp_path, val)[0] == []

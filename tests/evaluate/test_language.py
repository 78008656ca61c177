"""Held-out text by document and by source adds up to the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm.data.val_sample import ValSample
from llm.evaluate import language
from llm.model.hf_files import save_model
from tests.evaluate.standins import Bytes, held_out_text
from tests.model.conftest import random_model

TEXTS = ["Return the sum of all.", "", "Über alles " * 20, "the last one"]


def nats_of_documents(model: torch.nn.Module, stream: ValSample) -> list[float]:
    """Each document's loss by a loop over tokens, in windows of 64."""
    tokens = torch.tensor(stream.read(0, len(stream)).astype(np.int64))
    document, found = 0, [0.0]
    with torch.no_grad():
        for at in range(len(tokens)):
            if at:
                start = (at - 1) // 64 * 64
                logits = model(tokens[None, start:at]).double()[0, -1].log_softmax(-1)
                found[document] -= float(logits[tokens[at]])
            if tokens[at] == stream.eos_id and at + 1 < len(tokens):
                document += 1
                found.append(0.0)
    return found


@pytest.mark.parametrize("limit", [None, 40, 24, 2])
def test_the_loss_of_documents_is_that_of_their_tokens(limit: int | None) -> None:
    model, stream = random_model(), held_out_text(TEXTS, limit)
    found = language.language_modeling(model, stream, Bytes())
    np.testing.assert_allclose(found.documents, nats_of_documents(model, stream), rtol=1e-4)
    assert found.documents.sum() == pytest.approx(found.nats.sum())


def test_perplexity_is_that_of_transformers_in_float64(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    model, stream = random_model(), held_out_text(TEXTS)
    save_model(model, tmp_path, tmp_path, eos_id=0)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    tokens = torch.tensor(stream.read(0, len(stream)).astype(np.int64))
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 64):
            window = tokens[start : start + 65]
            logits = peer(window[None, :-1]).logits[0]
            assert logits.dtype == torch.float64
            nats += float(torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum"))
    loss, perplexity, _ = language.language_modeling(model, stream, Bytes()).measures()
    assert loss.value() == pytest.approx(nats / (len(tokens) - 1), rel=1e-6)
    assert perplexity.value() == pytest.approx(np.exp(nats / (len(tokens) - 1)), rel=1e-5)


def test_an_empty_first_document_costs_nothing() -> None:
    model, stream = random_model(), held_out_text(["", "some text"])
    found = language.language_modeling(model, stream, Bytes())
    assert found.documents[0] == 0
    assert found.documents.sum() == pytest.approx(found.nats.sum())


def test_every_source_has_the_bits_of_its_own_documents() -> None:
    model, stream = random_model(), held_out_text(TEXTS)
    found = language.language_modeling(model, stream, Bytes())
    records = [
        {"text": TEXTS[0], "source": "a"},
        {"text": "other", "source": "c"},
        {"text": TEXTS[3], "source": "b"},
    ]
    unread = iter([*records, {"text": TEXTS[2], "source": "late"}])
    names, sizes = language.sources(stream, Bytes(), unread), stream.document_bytes
    assert next(unread)["source"] == "late", "a corpus is not read beyond the held-out text"
    assert names == ["a", "unknown", "unknown", "b"]
    assert sizes.tolist() == [len(text.encode()) for text in TEXTS]
    measures = {m.name: m for m in language.by_source(found, names, sizes, stream.document_tokens)}
    assert list(measures) == ["bits_per_byte/a", "bits_per_byte/b", "bits_per_byte/unknown"]
    for name, places in (("a", [0]), ("b", [3]), ("unknown", [2])):
        expected = found.documents[places].sum() / np.log(2) / sizes[places].sum()
        assert measures[f"bits_per_byte/{name}"].value() == pytest.approx(expected)


def test_the_smallest_of_many_sources_are_scored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "SOURCES", 2)
    nothing = np.zeros(0)
    found = language.Windows(nothing, nothing, nothing, np.array([8.0, 4.0, 2.0, 1.0]), "")
    sizes = np.array([90, 20, 40, 10])
    names = language.largest(["large", "small", "middle", "tiny"], sizes)
    measures = language.by_source(found, names, sizes, sizes)
    assert [m.name.split("/")[1] for m in measures] == ["large", "middle", "others"]
    assert measures[2].value() == pytest.approx(5.0 / np.log(2) / 30)

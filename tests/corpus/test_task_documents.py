"""Training examples that join the pretraining text: which ones, in which form, and once."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm import tasks
from llm.corpus.chunks import find_chunks
from llm.corpus.clean.plan import Plan
from llm.corpus.encode import Encoded, describe, encode_corpus
from llm.corpus.task_documents import encode_examples
from llm.data.shards import TokenStream
from llm.params import Clean
from llm.runtime.io import sha256, write_json
from llm.sources.raw import Writer
from llm.tasks.mixture import Dataset, draw_tasks
from llm.tasks.splits import TRAIN, survey
from llm.text.ngrams import Grams
from llm.tokenizer.bpe import Tokenizer

WORDS = (
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "and",
    "returns",
    "zeros",
)


def record(i: int) -> dict[str, Any]:
    text = " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 16))
    return {
        "id": f"d{i}",
        "document": f"{text} {i:03d}",
        "summary": f"fox {i}",
        "group": f"d{i}",
        "split": "",
    }


RECORDS = [record(i) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([r["document"] for r in RECORDS], 320)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    task = tasks.get("summarization")
    placement = survey(task, "s", RECORDS, 0.2, 0.2)
    return Dataset("s", "summarization", task, 1.0, lambda: RECORDS, placement)


def encode(
    dataset: Dataset, tokenizer: Tokenizer, n: int, held_out: Grams | None = None
) -> Encoded:
    return encode_examples([dataset], {"s": n}, tokenizer, 7, 128, held_out)


def texts(encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    ids = encoded.ids["train"]
    ends = np.flatnonzero(ids == tokenizer.eos_id) + 1
    assert ends[-1] == len(ids)
    return [tokenizer.decode(ids[a:b].tolist()) for a, b in pairwise([0, *ends])]


def test_they_are_the_first_that_mix_draws_in_the_form_of_finetuning(
    dataset: Dataset, tokenizer: Tokenizer
) -> None:
    drawn = draw_tasks([dataset], TRAIN, 10, tokenizer, 7, 128)["s"].examples
    expected = {
        tokenizer.decode(
            [*tokenizer.chat_ids(e.prompt), *tokenizer.response_ids(e.response), tokenizer.eos_id]
        )
        for e in drawn
    }
    encoded = encode(dataset, tokenizer, 10)
    assert set(texts(encoded, tokenizer)) == expected
    assert len(expected) == 10
    assert encoded.counts.splits["train"]["documents"] == 10
    assert encoded.counts.splits["train"]["tokens"] == len(encoded.ids["train"])
    assert encoded.counts.tokens.sum() == len(encoded.ids["train"])
    assert encoded.counts.splits["val"]["tokens"] == len(encoded.ids["val"]) == 0
    assert list(encoded.counts.sources) == ["task s"]


def test_no_example_of_validation_or_test_is_among_them(
    dataset: Dataset, tokenizer: Tokenizer
) -> None:
    every = texts(encode(dataset, tokenizer, 1000), tokenizer)
    assert len(every) == dataset.survey.count(TRAIN) < len(RECORDS)
    for r, side in zip(RECORDS, dataset.survey.sides, strict=True):
        assert any(r["document"] in text for text in every) == (side == TRAIN)


def test_an_example_that_shares_a_run_with_held_out_text_is_left_out(
    dataset: Dataset, tokenizer: Tokenizer
) -> None:
    one = next(r for r, side in zip(RECORDS, dataset.survey.sides, strict=True) if side == TRAIN)
    grams = Grams()
    grams.add(one["document"])
    grams.freeze()
    every = texts(encode(dataset, tokenizer, 1000, grams), tokenizer)
    assert 0 < len(every) < dataset.survey.count(TRAIN)
    assert not any(one["document"] in text for text in every)


def test_they_follow_the_corpus_once_even_if_the_last_save_was_followed_by_a_kill(
    dataset: Dataset, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with Writer(tmp_path / "raw", "pretrain") as writer:
        for r in RECORDS:
            writer.write({"id": r["id"], "text": r["document"], "source": "docs", "group": ""})
    chunks = find_chunks(tmp_path / "raw")

    def write() -> dict[str, str]:
        shards, counts = encode_corpus(
            chunks,
            tokenizer,
            tmp_path / "work",
            0.2,
            1500,
            Plan(Clean(), None),
            last=lambda: encode(dataset, tokenizer, 10),
        )
        meta = describe(shards, counts, tokenizer, 0.2)
        write_json(tmp_path / "work" / "tokens" / "meta.json", meta)
        return {path.name: sha256(path) for path in (tmp_path / "work" / "tokens").iterdir()}

    once = write()
    stream = TokenStream(tmp_path / "work" / "tokens", "train")
    last = encode(dataset, tokenizer, 10).ids["train"]
    assert np.array_equal(stream.read(len(stream) - len(last), len(last)), last)
    assert write() == once

"""Text baselines: documents come back from the stream, and code lengths are those of a decoder."""

from __future__ import annotations

import numpy as np
import pytest
import zstandard

from llm.errors import UserError
from llm.evaluate import compression
from tests.evaluate.standins import Bytes, Stream

TEXTS = ["the first document.", "", "über – ünïcode", "the last"]


def test_documents_come_back_whatever_the_size_of_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(TEXTS)
    for read in (1, 3, 10**6):
        monkeypatch.setattr(compression, "READ", read)
        found = list(compression.documents(stream, Bytes()))
        assert [text for text, _ in found] == TEXTS
        assert sum(tokens for _, tokens in found) == len(stream)


def test_unigram_costs_are_add_one_smoothed_frequencies() -> None:
    counts = compression.token_counts(Stream(["aab"]), Bytes.vocab_size)
    assert counts.sum() == 4  # a, a, b and the end
    nats, tokens = compression.unigram_nats(Stream(["aabc"]), counts, sequence_length=3)
    total = 4 + Bytes.vocab_size
    assert tokens.tolist() == [3, 1]  # the first token is not predicted
    assert nats == pytest.approx(
        [-np.log(3 / total) - np.log(2 / total) - np.log(1 / total), -np.log(2 / total)]
    )


def test_a_token_beyond_the_vocabulary_is_a_user_error() -> None:
    with pytest.raises(UserError, match="different tokenizers"):
        compression.token_counts(Stream(["z"]), 100)


def test_the_sample_is_spread_over_the_corpus_and_bounded() -> None:
    sample = compression.Sample(total_bytes=100_000, budget=10_000)
    for i in range(100):
        sample.add(f"{i:03d}" * 333 + "é")
    starts = [int(piece[:3]) for piece in sample.pieces]
    assert starts == list(range(0, 100, 10))[: len(starts)]
    assert len(starts) >= 9
    assert sum(map(len, sample.pieces)) <= 10_000


def test_compressed_documents_can_be_decompressed_with_the_dictionary() -> None:
    rng = np.random.default_rng(0)
    words = [f"word{i}" for i in range(200)]
    train = [" ".join(rng.choice(words, size=60)) for _ in range(400)]
    held_out = [" ".join(rng.choice(words, size=60)) for _ in range(20)]
    dictionary, how = compression.train_dictionary([text.encode() for text in train], size=4096)
    assert how == "dictionary:trained, 4096 bytes"
    small, size = compression.compressed_bytes([*held_out, ""], dictionary)
    assert size.tolist() == [len(text) for text in held_out]
    plain = [len(zstandard.ZstdCompressor(level=19).compress(text.encode())) for text in held_out]
    assert small.sum() < 0.9 * sum(plain)
    again, _ = compression.compressed_bytes(
        held_out, compression.train_dictionary([t.encode() for t in train], 4096)[0]
    )
    np.testing.assert_array_equal(small, again)


def test_little_training_text_is_itself_the_dictionary() -> None:
    dictionary, how = compression.train_dictionary(
        [b"a few words of training text that come again"]
    )
    assert how == "dictionary:raw text, 44 bytes"
    small, _ = compression.compressed_bytes(
        ["a few words of training text that come again"], dictionary
    )
    assert small[0] < 20

"""Text that is given out piece by piece is the text of the whole, and never more than is sure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.generation.generate import complete, stream
from llm.generation.request import Completion, Request, stopped
from llm.generation.text_stream import TextStream
from llm.params import Decoding
from llm.tokenizer.bpe import Tokenizer
from tests.evaluate.standins import Bytes
from tests.model.conftest import random_model
from tests.tokenizer.test_pretrained import TEXTS, write

BYTES = Bytes()


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=20),
    st.lists(st.text(min_size=1, max_size=4), max_size=3),
    st.binary(max_size=4),
)
def test_the_pieces_together_are_the_text_before_the_first_stop_string(
    text: str, stops: list[str], tail: bytes
) -> None:
    ids = [*text.encode("utf-8", "replace"), *tail]
    found = next(
        (
            done
            for n in range(1, len(ids) + 1)
            if (done := stopped(ids[:n], END, stops, BYTES.decode))
        ),
        None,
    )
    answer = found or Completion(ids, "length", BYTES.decode(ids))
    writer = TextStream(BYTES.decode, stops)
    whole = answer.text or ""
    given_out = ""
    for n in range(1, len(answer.ids)):
        given_out += writer.more(ids[:n])
        assert whole.startswith(given_out)
    assert given_out + writer.rest(answer) == whole


END: frozenset[int] = frozenset()


def test_half_a_character_and_the_beginning_of_a_stop_string_are_held_back() -> None:
    writer, ids = TextStream(BYTES.decode, ["STOP"]), []
    given_out = []
    for byte in "é: ST, STO".encode():
        ids.append(byte)
        given_out.append(writer.more(ids))
    assert given_out == ["", "é", ":", " ", "", "", "ST,", " ", "", "", ""]


@pytest.mark.parametrize("kind", ["chatml", "llama-2"])
def test_the_tokenizers_of_others_give_their_text_in_pieces_too(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write(tmp_path, kind))
    for text in TEXTS:
        ids = tokenizer.encode(text)
        writer, given_out = TextStream(tokenizer.decode), ""
        for n in range(1, len(ids)):
            given_out += writer.more(ids[:n])
            assert text.startswith(given_out)
        assert given_out + writer.rest(Completion(ids, "length", text)) == text


def test_a_stream_is_the_answer_of_complete() -> None:
    tokenizer = Tokenizer.train(["the cat sat on the mat " * 3], 300)
    model = random_model(vocab_size=tokenizer.vocab_size)
    for seed in range(5):
        request = Request([5, 6, 7], 20, Decoding(temperature=1.0, stop_strings=("a",)), seed)
        (whole,) = complete(model, [request], frozenset({tokenizer.eos_id}), tokenizer.decode)
        with torch.inference_mode():
            pieces = list(stream(model, request, frozenset({tokenizer.eos_id}), tokenizer.decode))
        assert "".join(pieces) == whole.text

"""Answers that must be spans of a text, against a list of all spans of that text."""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.generation.generate import complete, generate
from llm.generation.request import Request
from llm.generation.spans import Span, Spans
from llm.model.transformer import Transformer
from llm.params import Decoding
from tests.generation.test_generate import SAMPLED, peer_of
from tests.model.conftest import random_model

END = 0
EMOJI, HAN = "😀".encode(), "中文".encode()
# Tokens of parts of words, of several words, with blanks on either side, and of parts of characters.
LONGER = [
    b" a", b"ab", b" ab", b"a b", b"b ", b"  ", b"\n\n", b".\n", b". ", b"(a", b"abc", b"c d e",
    EMOJI[:2], EMOJI[1:], HAN[:3], HAN[2:5], b" \xc3", b"\xa9)", b"a" + EMOJI[:1],
]  # fmt: skip
PIECES = dict(enumerate([*(bytes([byte]) for byte in range(256)), *LONGER], 1))
TEXTS = [
    "a",
    "ab abc (ab) a b c d e.",
    "a  ab\n\nabc. b",
    "é cab é) aé a😀b 中文a",
    "aaa aa a aaaa",
]


class Toy:
    """Byte b is token b + 1; the tokens of `LONGER` follow."""

    def encode(self, text: str) -> list[int]:
        return [byte + 1 for byte in text.encode()]

    def response_ids(self, text: str) -> list[int]:
        return self.encode(text)

    def token_bytes(self) -> dict[int, bytes]:
        return PIECES

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join(PIECES.get(token, b"") for token in ids)

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode(errors="replace")


TOY = Toy()


@functools.cache
def all_spans(text: str) -> set[bytes]:
    """Every piece of a text that begins and ends with whole words, found by trying each piece."""

    def kind(char: str) -> str:
        if "CJK" in unicodedata.name(char, ""):
            return "alone"
        return "letter" if unicodedata.category(char)[0] in "LMN" else "other"

    def joined(i: int) -> bool:  # is there no border between words before text[i]?
        return 0 < i < len(text) and kind(text[i - 1]) == kind(text[i]) == "letter"

    pieces = itertools.combinations(range(len(text) + 1), 2)
    return {
        text[i:j].encode()
        for i, j in pieces
        if not joined(i) and not joined(j) and text[i:j] == text[i:j].strip()
    }


@functools.cache
def beginnings(text: str) -> set[bytes]:
    return {span[:end] for span in all_spans(text) for end in range(1, len(span) + 1)}


def allowed_by_trying(text: str, answer: list[int]) -> set[int]:
    """Every token after which some span can still be completed, and the end if one is complete."""
    before = TOY.decode_bytes(answer)
    found = {token for token, piece in PIECES.items() if before + piece in beginnings(text)}
    return found | ({END} if before in all_spans(text) else set())


def span_of(text: str, *others: str) -> Span:
    span = Spans(TOY).of(text, others)
    assert span is not None
    return span


@pytest.mark.parametrize("text", TEXTS)
@settings(deadline=None, max_examples=30)
@given(choices=st.lists(st.integers(0, 10**6), min_size=1, max_size=30))
def test_a_token_is_allowed_where_a_span_can_still_be_completed(
    text: str, choices: list[int]
) -> None:
    span, answer = span_of(text), list[int]()
    for choice in choices:
        allowed = set(span.allowed([END]))
        assert allowed == allowed_by_trying(text, answer)
        assert allowed, "an answer can always be completed"
        token = sorted(allowed)[choice % len(allowed)]
        if token == END:
            assert TOY.decode(answer) in text
            break
        answer.append(token)
        span = span.after(token)


@settings(deadline=None, max_examples=50)
@given(text=st.text("ab é.(中😀\n", min_size=1))
def test_any_text_with_a_word_has_its_spans_and_no_answer_is_empty(text: str) -> None:
    span = Spans(TOY).of(text)
    if not text.strip():
        assert span is None
        return
    assert span is not None
    assert set(span.allowed([END])) == allowed_by_trying(text.strip(), [])
    assert END not in span.allowed([END])


def masked_greedy(model: Transformer, prompt: list[int], text: str, limit: int) -> list[int]:
    """The highest logit among the tokens that the list of all spans allows, step by step."""
    answer: list[int] = []
    while len(answer) < limit:
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer]))[0, -1]
        allowed = sorted(allowed_by_trying(text, answer))
        token = allowed[int(logits[allowed].argmax())]
        if token == END:
            break
        answer.append(token)
    return answer


def requests(decoding: Decoding, limit: int = 40) -> list[Request]:
    """One for each text, of prompts of many lengths."""
    return [
        Request([5 + i] * (1 + 3 * i), limit, decoding, i, span=span_of(text))
        for i, text in enumerate(TEXTS)
    ]


def answers(model: Transformer, asked: list[Request], size: int = 3) -> list[list[int]]:
    return [c.ids for c in complete(model, asked, frozenset({END}), TOY.decode, size)]


def likely_end(seed: int = 0) -> Transformer:
    """A random model that ends a text now and then."""
    model = random_model(seed, tie_word_embeddings=False)
    model.lm_head.weight.data[END] *= 3.0
    return model


@pytest.mark.parametrize("seed", range(3))
def test_greedy_decoding_is_the_best_token_of_those_that_the_list_of_spans_allows(
    seed: int,
) -> None:
    model = likely_end(seed)
    found = answers(model, requests(Decoding()))
    expected = [
        masked_greedy(model, request.prompt, text, 40)
        for request, text in zip(requests(Decoding()), TEXTS, strict=True)
    ]
    assert found == expected
    assert any(len(answer) > 2 for answer in found)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        Decoding(repetition_penalty=1.4),
        Decoding(num_beams=3),
        Decoding(num_beams=4, length_penalty=-0.5),
        Decoding(num_beams=2, repetition_penalty=1.3),
    ],
    ids=lambda decoding: decoding.describe(),
)
def test_the_tokens_are_those_of_transformers_with_the_same_list(
    decoding: Decoding, tmp_path: Path
) -> None:
    model = likely_end()
    peer = peer_of(model, tmp_path)
    names = {"num_beams", "length_penalty", "repetition_penalty"}

    def constraint(prompt: list[int], text: str) -> Callable[[int, torch.Tensor], list[int]]:
        def allowed(_: int, ids: torch.Tensor) -> list[int]:
            # A beam that left every span has probability 0; transformers wants a token from it too.
            answer = [token for token in ids[len(prompt) :].tolist() if token != END]
            return sorted(allowed_by_trying(text, answer)) or [END]

        return allowed

    for request, text in zip(requests(decoding), TEXTS, strict=True):
        (found,) = answers(model, [request])
        ids = torch.tensor([request.prompt])
        theirs = peer.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=40,
            prefix_allowed_tokens_fn=constraint(request.prompt, text),
            **decoding.model_dump(include=names),
        )[0, len(request.prompt) :].tolist()  # fmt: skip
        assert found == (theirs[: theirs.index(END)] if END in theirs else theirs)


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(),
        SAMPLED,
        Decoding(temperature=9.0),
        Decoding(num_beams=3),
        Decoding(prompt_lookup_num_tokens=3),
    ],
    ids=["greedy", "sampled", "hot", "beams", "lookup"],
)
@pytest.mark.parametrize("limit", [1, 2, 5, 40])
def test_every_answer_is_a_span_and_depends_on_no_neighbour(decoding: Decoding, limit: int) -> None:
    model, asked = likely_end(), requests(decoding, limit)
    free = [Request(request.prompt, limit, decoding, request.seed) for request in asked]
    together = answers(model, [*asked, *free], size=6)
    for answer, text in zip(together, TEXTS, strict=False):
        spans = all_spans(text)
        if limit > 2 or TOY.decode_bytes(answer) in spans:
            assert TOY.decode_bytes(answer) in spans
        else:  # its first word needs more tokens than it may have
            assert any(span.startswith(TOY.decode_bytes(answer)) for span in spans)
        assert answer
    assert together[: len(asked)] == [answers(model, [request])[0] for request in asked]
    assert together[len(asked) :] == [answers(model, [request])[0] for request in free]


def test_guesses_from_the_prompt_change_no_answer() -> None:
    model = likely_end()
    prompts = [TOY.encode(text) for text in TEXTS]
    spans = [span_of(text) for text in TEXTS]
    found = [
        answers(model, [Request(p, 20, decoding, span=s) for p, s in zip(prompts, spans, strict=True)])
        for decoding in (Decoding(), Decoding(prompt_lookup_num_tokens=4))
    ]  # fmt: skip
    assert found[0] == found[1]


def test_an_answer_at_its_limit_ends_with_a_complete_word() -> None:
    span = span_of("ab abc (ab) abcd")
    for text, expected in {
        "abc (a": "abc (",
        "ab abc": "ab abc",
        "abc (ab) ": "abc (ab)",
        "a": "a",  # no word is complete
    }.items():
        assert TOY.decode(span.whole(TOY.encode(text))) == expected


def test_other_answers_are_allowed_as_a_whole() -> None:
    span = span_of("one cat", "unanswerable")
    for text in ("unanswerable", "one", "cat", "one cat"):
        after = walk(span, text)
        assert after.may_end, text
    assert not walk(span, "unans").may_end
    assert [chr(token - 1) for token in walk(span, "un").allowed([END])] == ["a"]


def walk(span: Span, text: str) -> Span:
    """The answer after a text, one byte a token."""
    for token in TOY.encode(text):
        assert token in span.allowed([END]), text
        span = span.after(token)
    return span


def test_a_stop_string_may_follow_a_word() -> None:
    span = Spans(TOY).of("one cat", stop_strings=("\n\n", "###"))
    assert span is not None
    assert not {*TOY.encode("\n#")} & {*span.allowed([END])}, "no answer is empty"
    assert {*TOY.encode("\n# "), END} <= {*walk(span, "one").allowed([END])}
    assert not {*TOY.encode("\n#")} & {*walk(span, "on").allowed([END])}
    assert walk(span, "one\n").allowed([END]) == TOY.encode("\n")


@pytest.mark.parametrize("beams", [1, 2])
def test_a_model_that_ends_with_a_stop_string_may_do_so(beams: int) -> None:
    model = random_model(tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()
    # All logits are 0 but the one of a line break: it comes as soon as it may.
    decoding = Decoding(stop_strings=("\n",), num_beams=beams)
    span = Spans(TOY).of("cat", stop_strings=decoding.stop_strings)
    (done,) = complete(model, [Request([5], 9, decoding, span=span)], frozenset({END}), TOY.decode)
    assert (done.text, done.reason) == ("cat", "stop")


def test_one_blank_may_stand_in_front_where_the_prompt_ends_in_a_word() -> None:
    span = Spans(TOY).of("ab (a) b", blank=True)
    assert span is not None
    pieces = TOY.token_bytes()
    first = {pieces[token] for token in span.allowed([END])}
    assert first == {b" ", b" a", b" ab", b"a", b"ab", b"b", b"(", b"(a", b")"}
    assert TOY.decode_bytes(span.after(1 + ord(" ")).allowed([END])).strip(), "text follows"
    assert not span.after(1 + ord(" ")).may_end
    assert b" " not in {pieces[t] for t in span.after(1 + ord(" ")).allowed([END])}
    ab = next(token for token, piece in pieces.items() if piece == b" ab")
    assert span.after(ab).may_end


def test_a_text_that_the_tokenizer_cannot_write_has_no_span() -> None:
    class Letters(Toy):
        def token_bytes(self) -> dict[int, bytes]:
            return {1: b"a", 2: b"b"}

        def encode(self, text: str) -> list[int]:
            return [1]

    assert Spans(Letters()).of("123") is None
    assert Spans(Letters()).of(" \n") is None
    span = Spans(Letters()).of("ab1")
    assert span is not None
    assert span.allowed([END]) == [1]
    assert span.after(1).after(2).allowed([END]) == [END], "the next character has no token"


def test_without_a_span_decoding_is_as_ever() -> None:
    model = likely_end()
    prompts = [request.prompt for request in requests(Decoding())]
    for decoding in (Decoding(), SAMPLED, Decoding(num_beams=3)):
        free = generate(model, prompts, 12, END, decoding, batch_size=6)
        asked = [Request(p, 12, decoding, i) for i, p in enumerate(prompts)]
        mixed = answers(model, [*asked, *requests(decoding)], size=6)
        assert mixed[: len(free)] == free


@pytest.mark.parametrize("decoding", [Decoding(), SAMPLED, Decoding(num_beams=2)])
def test_a_logit_that_is_no_number_is_found_among_the_forbidden_tokens(decoding: Decoding) -> None:
    model = likely_end()
    model.lm_head.weight.data[1 + ord("z")] = torch.nan  # no text of ours has this letter
    (done,) = complete(model, [Request([5], 4, decoding, span=span_of("ab"))], frozenset({END}))
    assert done.reason == "not_finite"

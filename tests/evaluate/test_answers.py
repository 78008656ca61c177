"""One real small model through every kind of test, and what happens to odd prompts and broken
models.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm.errors import UserError
from llm.evaluate import answers as run
from llm.evaluate import language, metrics, table
from llm.evaluate.answers import Asking
from llm.evaluate.metric_names import COUNTS
from llm.evaluate.prompts import Shots, prompt_ids, room_for, visible
from llm.evaluate.scorebook import ScoreBook
from llm.evaluate.test_sets import TestSet
from llm.evaluate.text_baselines import text_baselines_and_contamination
from llm.params import Decoding
from llm.tasks.question_answering import QuestionAnswering
from tests.evaluate.standins import Bytes, Stream, held_out_text, log_likelihood
from tests.model.conftest import random_model

COMMON = {
    "prompt": "Return the sum. Say it.",
    "references": ["Return the sum."],
    "truncated": False,
}
ROWS = {
    "summarization": {"document": "Return the sum. More."},
    "question_answering": {"context": "Return the sum. More.", "question": "What?"},
    "classification": {"text": "x", "choices": ["a", "bb", "cc"], "label": "bb"},
    "instructions": {"instruction": "Do.", "input": ""},
}


def held_out(kind: str, count: int = 3) -> TestSet:
    return TestSet(
        kind, kind, [{"id": str(i), **COMMON, "kind": kind, **ROWS[kind]} for i in range(count)]
    )


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("chat", [True, False])
def test_every_kind_of_task_is_answered_and_scored(kind: str, chat: bool) -> None:
    test = held_out(kind)
    answers = run.answer(random_model(), Bytes(), test, Asking(chat, {kind: 5}))
    found = {m.name: m for m in [*run.measures(test, answers.texts, answers.form), *answers.extra]}
    expected = {
        "summarization": {*metrics.ROUGE, "bleu", "mean_length", "unfinished"},
        "instructions": {*metrics.ROUGE, "bleu", "mean_length", "unfinished"},
        "question_answering": {"exact_match", "f1", "mean_length", "unfinished"},
        "classification": {"accuracy", "mcc", "f1_macro", "accuracy_normalised", "unseen_label"},
    }
    assert set(found) == expected[kind] | {"truncated", "empty", "no_reference"}
    assert len(answers.texts) == 3
    form = f"prompt:{'chat' if chat else 'plain'}, 0-shot|"
    assert all(form in measure.signature for name, measure in found.items() if name not in COUNTS)
    assert found["truncated"].value() == 0.0


CONTEXT = "The first part of naïve text (it is long); the second one, the last."


def asked_about(prompt: str, context: str = CONTEXT, **row: Any) -> TestSet:
    """One question that is asked by this prompt."""
    common = {"references": ["x"], "truncated": False, "context": context, "question": "What?"}
    rows = [{"id": "0", "prompt": prompt, "kind": "question_answering", **common, **row}]
    return TestSet("question_answering", "question_answering", rows)


@pytest.mark.parametrize(
    "decoding",
    [Decoding(), Decoding(temperature=1.5), Decoding(num_beams=3)],
    ids=["greedy", "sampled", "beams"],
)
@pytest.mark.parametrize("chat", [True, False])
def test_an_extractive_answer_is_a_span_of_the_field_and_the_signature_says_so(
    chat: bool, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, test = random_model(max_position_embeddings=128), asked_about(f"{CONTEXT}\n\nWhat?")
    test = TestSet(test.name, test.kind, [{**test.rows[0], "id": str(i)} for i in range(5)])
    asking = Asking(chat, {test.kind: 20}, decoding)
    found = run.answer(model, Bytes(), test, asking)
    words = re.findall(r"\w+|[^\w\s]", CONTEXT)
    for text in found.texts:
        assert text in CONTEXT
        assert text
        assert re.findall(r"\w+|[^\w\s]", text)[0] in words
        assert re.findall(r"\w+|[^\w\s]", text)[-1] in words
    (f1,) = [m for m in run.measures(test, found.texts, found.form) if m.name == "f1"]
    assert f"{decoding.describe()}, spans of context, at most 20 tokens" in f1.signature
    monkeypatch.setattr(QuestionAnswering, "EXTRACTIVE", None)
    free = run.answer(model, Bytes(), test, asking)
    assert "spans" not in free.form
    assert not any(text in CONTEXT for text in free.texts), "a random model copies nothing"


def test_an_extractive_answer_is_a_span_of_what_the_prompt_shows() -> None:
    model = random_model(max_position_embeddings=64)
    for seed in range(8):
        # The mixture cut the context; then the model's context loses the beginning of the prompt.
        test = asked_about(f"Read: {CONTEXT[:43]}\n\nWhat?", truncated=True)
        asking = Asking(True, {test.kind: 16}, Decoding(temperature=2.0), seed=seed)
        ids, lost = prompt_ids(Bytes(), test.rows[0]["prompt"], True, room_for(64, 16))
        assert lost > len("Read: ")
        (text,) = run.answer(model, Bytes(), test, asking).texts
        assert text in bytes(ids[1:-1]).decode()
        assert text in CONTEXT[:43]


def test_the_visible_words_of_a_field_are_those_that_the_prompt_holds() -> None:
    text = "alpha beta, gamma delta"
    assert visible(text, f"Read. {text} What?", 0) == text
    assert visible(f" {text}\n", f"Read. {text} What?", 0) == text
    assert visible(text, "Read. alpha beta, gamma What?", 0) == "alpha beta, gamma"
    assert visible(text, "Read. alpha beta, gamma did?", 0) == "alpha beta, gamma"  # d of delta
    assert visible(text, "Read. alpha bet", 0) == "alpha"
    assert visible(text, f"Read. {text} What?", len("Read. al")) == "beta, gamma delta"
    assert visible(text, f"{text} What? {text}", len(text)) == text
    assert visible(text, f"Read. {text} What?", 99) == ""
    assert visible(text, "What?", 0) == ""
    assert visible("中文文本", "读。中文文 问?", 0) == "中文文"


def test_an_unanswerable_question_may_be_called_so_where_the_prompt_does() -> None:
    for template in QuestionAnswering.TEMPLATES_V2:
        assert QuestionAnswering().other_answers({"prompt": template}) == ("unanswerable",)
    model, answered = random_model(max_position_embeddings=256), set()
    for prompt in ("Short text.", "Short text. Or say unanswerable."):
        test = asked_about(prompt, "Short text.")
        for seed in range(20):
            asking = Asking(True, decoding=Decoding(temperature=30.0), seed=seed)
            answered.add((prompt, run.answer(model, Bytes(), test, asking).texts[0]))
    assert {text for prompt, text in answered if "Or" not in prompt} <= {
        "Short", "Short text", "Short text.", "text", "text.", "."
    }  # fmt: skip
    assert "unanswerable" in {text for prompt, text in answered if "Or" in prompt}


def test_few_plain_shots_leave_an_extractive_answer_its_end() -> None:
    test = asked_about("Short text. What?", "Short text.")
    model = random_model(max_position_embeddings=256, tie_word_embeddings=False)
    model.lm_head.weight.data.zero_()  # the end of a line has the lowest id of all that may follow
    shots = Shots(1, [("question", "answer")])
    found = run.answer(model, Bytes(), test, Asking(False, shots=shots))
    assert found.texts[0] in ("Short", "text", ".")


def test_a_field_that_no_prompt_shows_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"question_answering: llm/tasks/question_answering\.py .* 'context'"
    ):
        run.answer(random_model(), Bytes(), asked_about("What?"), Asking(True))


def test_a_limit_of_a_task_that_is_not_there_is_refused() -> None:
    tests = [held_out("summarization", 1)]
    run.check_limits({tests[0].name: 3, "instructions": 3}, tests)
    with pytest.raises(
        UserError, match=r"max_new_tokens\.sumarization: neither .* did you mean summarization\?"
    ):
        run.check_limits({"sumarization": 3}, tests)


def test_a_classification_is_the_choice_of_the_highest_likelihood() -> None:
    model, test, tokenizer = random_model(), held_out("classification", 1), Bytes()
    answers = run.answer(model, tokenizer, test, Asking(True))
    choices = ROWS["classification"]["choices"]
    prompt = tokenizer.chat_ids(COMMON["prompt"])
    sums = np.array(
        [log_likelihood(model, prompt, [*tokenizer.encode(c), tokenizer.eos_id]) for c in choices]
    )
    assert answers.columns["log_likelihoods"][0] == pytest.approx(sums.tolist(), abs=1e-4)
    assert answers.texts == [choices[int(np.argmax(sums))]]
    right = choices[int(np.argmax(sums / [1, 2, 2]))] == test.rows[0]["label"]
    assert answers.extra[0].value() == float(right)


def test_a_long_prompt_loses_its_beginning_and_is_counted() -> None:
    tokenizer = Bytes()
    assert prompt_ids(tokenizer, "abcdef", True, 5) == ([257, *b"def", 258], 3)
    assert prompt_ids(tokenizer, "abcdef", False, 3) == ([*b"ef", 10], 4)
    assert prompt_ids(tokenizer, "ab", False, 3) == ([*b"ab", 10], 0)
    model, test = random_model(), held_out("summarization", 2)
    test.rows[0]["prompt"] = "long " * 100
    answers = run.answer(model, tokenizer, test, Asking(True, {"summarization": 8}))
    assert answers.extra[0].value() == 0.5
    test.rows[1]["truncated"] = True  # by the mixture
    assert (
        run.answer(model, tokenizer, test, Asking(True, {"summarization": 8})).extra[0].value()
        == 1.0
    )


def test_an_answer_limit_as_long_as_the_context_leaves_half_of_it_to_the_prompt() -> None:
    assert room_for(64, 16) == 48
    assert room_for(64, 100) == 32


def test_a_task_named_otherwise_than_its_kind_may_have_its_own_limit() -> None:
    test = TestSet("cnn", "summarization", held_out("summarization").rows)
    for limits, expected in (
        ({"summarization": 9, "cnn": 2}, 2),
        ({"summarization": 9}, 9),
        ({}, 64),
    ):
        short = run.answer(random_model(), Bytes(), test, Asking(True, limits))
        assert f"at most {expected} tokens" in short.form


def test_logits_that_are_not_finite_name_model_and_task() -> None:
    model = random_model()
    model.model.layers[0].mlp.up_proj.weight.data[0, 0] = torch.nan
    for kind in ("summarization", "classification"):
        with pytest.raises(
            UserError, match=f"models/base, {kind}: .* not finite for 3 of 3 prompts"
        ):
            run.answer(
                model, Bytes(), held_out(kind), Asking(True, {kind: 3}, who=f"models/base, {kind}")
            )
    with pytest.raises(UserError, match=r"base: .* for 1 of 1 windows of text"):
        language.language_modeling(model, held_out_text(["some text"]), Bytes(), "base")


def test_a_model_without_the_tokens_of_the_tasks_form_is_refused() -> None:
    model = random_model(vocab_size=257)  # the bytes and the end, nothing for a chat
    with pytest.raises(UserError, match="models/base: the tokenizer has 300 tokens, the model 257"):
        run.answer(model, Bytes(), held_out("summarization"), Asking(True, who="models/base"))


def test_perplexity_and_bits_per_byte_are_those_of_a_plain_computation() -> None:
    model, texts = random_model(), ["Return the sum of all.", "Über alles " * 20]
    stream = held_out_text(texts)
    found = language.language_modeling(model, stream, Bytes())
    loss, perplexity, bits = found.measures()
    tokens = torch.tensor(stream.read(0, len(stream)).astype(np.int64))
    nats, predicted = 0.0, len(stream) - 1
    with torch.no_grad():
        for start in range(0, predicted, 64):
            window = tokens[start : start + 65]
            logs = model(window[None, :-1]).double().log_softmax(-1)[0]
            nats -= float(logs.gather(-1, window[1:, None]).sum())
    assert loss.value() == pytest.approx(nats / predicted, rel=1e-5)
    assert perplexity.value() == pytest.approx(math.exp(nats / predicted), rel=1e-5)
    assert found.documents.sum() == pytest.approx(nats, rel=1e-5)
    assert bits.value() == pytest.approx(
        nats / math.log(2) / sum(len(t.encode()) for t in texts), rel=1e-5
    )
    score = bits.score(200, 0.95, 0)
    assert score["low"] <= score["value"] <= score["high"]


def test_a_part_of_the_text_counts_only_its_own_bytes() -> None:
    stream = held_out_text([f"abcde{i}ü" for i in range(9)] * 3, 90)
    *_, bits = language.language_modeling(random_model(), stream, Bytes()).measures()
    assert bits.statistics[:, 1].sum() == pytest.approx(80)  # ten documents of eight bytes
    assert "10 of 27 held-out documents, chosen by a hash" in bits.signature


def test_the_text_baselines_code_the_same_text_and_see_contamination() -> None:
    rng = np.random.default_rng(0)
    vocabulary = [f"word{i}" for i in range(300)]
    texts = [" ".join(rng.choice(vocabulary, size=50)) for _ in range(400)]
    train, val = Stream(texts[:360]), held_out_text([*texts[360:], texts[0]])
    tests = [held_out("summarization", 2), held_out("question_answering", 2)]
    tests[0].rows[0]["document"] = texts[5]
    tests[1].rows[1]["references"] = [texts[399]]  # held out, and in the mixture
    found = text_baselines_and_contamination(tests, [f"Q: {texts[399]}"], train, val, Bytes(), 64)
    assert found.contamination == {
        "language_modeling": 2 / 41,
        "question_answering": 0.5,
        "summarization": 0.5,
    }
    (zstd,) = found.measures["baseline:zstd"]
    unigram = {m.name: m.value() for m in found.measures["baseline:unigram"]}
    assert zstd.statistics[:, 1].sum() == val.bytes
    assert 0 < zstd.value() < unigram["bits_per_byte"] < 8
    assert unigram["perplexity"] < Bytes.vocab_size


def test_a_score_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    book = ScoreBook(tmp_path, 100, 0.95, 0)
    broken = metrics.bits_per_byte(np.array([np.nan, 1.0]), np.array([1, 1]), "")
    with pytest.raises(UserError, match="base, language_modeling: bits_per_byte is not finite"):
        book.add("base", "language_modeling", [broken])


def test_the_book_keeps_answers_and_scores_and_the_table_shows_them(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    book = ScoreBook(tmp_path, 100, 0.95, 0)
    test = held_out("question_answering", 2)
    book.answers("finetuned", test, run.Answers(["Return it", ""], {}, [], "form"))
    book.answers("baseline:random", test, run.Answers(["", ""], {}, [], "form"))
    rows = pq.read_table(tmp_path / "finetuned-question_answering.parquet").to_pylist()
    assert [row["prediction"] for row in rows] == ["Return it", ""]
    assert {"id", "prompt", "references", "exact_match", "f1", "mean_length"} <= set(rows[0])
    assert rows[0]["f1"] == pytest.approx(0.5)  # one shared word of two and two
    assert (tmp_path / "baseline_random-question_answering.parquet").exists()
    score = book.results["finetuned"]["question_answering"]["f1"]
    assert score["value"] == pytest.approx(0.25)
    assert score["n"] == 2
    text = table.render(book.results, {"question_answering": 0.5})
    assert text.splitlines()[0].endswith(
        "50.0 % of the test examples share 13 words with the training text"
    )
    assert text.index("finetuned") < text.index("baseline:random")
    lines = table.scores_csv(book.results).splitlines()
    assert lines[0].startswith("metric,value")
    assert any(line.startswith("question_answering f1 · finetuned,0.25") for line in lines)
    assert table.headlines(book.results) == {
        ("finetuned", "question_answering", "f1"): pytest.approx(0.25)
    }

"""Task modules: prompts, targets, and how long texts are cut."""

from __future__ import annotations

import string
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from llm import tasks
from llm.errors import UserError
from llm.tasks.base import UnusableError, choose, render, render_test, token_prefix
from llm.tokenizer.bpe import Tokenizer

SENTENCE = "return the array of a given shape and type filled with zeros where each value is read from disk"
WORDS = SENTENCE.split(" ")
LABELS = ("numpy", "pandas")
classification = tasks.get("classification")
instructions = tasks.get("instructions")
question_answering = tasks.get("question_answering")
summarization = tasks.get("summarization")


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))] * 3, 400)


def record(kind: str, n: int = 12, **changed) -> dict:
    text = " ".join(WORDS[i % len(WORDS)] for i in range(n))
    fields = {
        "summarization": {"document": text, "summary": "Return zeros."},
        "question_answering": {
            "context": text,
            "question": "What is read?",
            "answers": ["the array"],
        },
        "classification": {"text": text, "text_pair": None, "label": "numpy"},
        "instructions": {"instruction": "Say it again.", "input": text, "output": "Zeros."},
    }[kind]
    return {"id": "r1", "group": "g1", "split": "", **fields, **changed}


ALL_TEMPLATES = [
    (kind, template)
    for kind in tasks.kinds()
    for name in dir(tasks.get(kind))
    if name.startswith("TEMPLATES")
    for template in getattr(tasks.get(kind), name)
]


@pytest.mark.parametrize(("kind", "template"), ALL_TEMPLATES)
def test_every_template_renders_with_the_fields_of_its_task(kind, template):
    changed = {"text_pair": "and another text"} if "{text_pair}" in template else {}
    task = tasks.get(kind)
    fields = task.fields(record(kind, **changed), LABELS)
    prompt = template.format(**fields)
    named = {name for _, name, _, _ in string.Formatter().parse(template) if name}
    assert named
    for name in named:
        assert fields[name]
        assert fields[name] in prompt
    assert prompt == prompt.strip()
    assert "<|" not in prompt


@pytest.mark.parametrize("kind", tasks.kinds())
def test_all_phrasings_of_a_kind_are_used_and_an_id_keeps_its_own(kind):
    task = tasks.get(kind)
    fields = task.fields(record(kind), LABELS)
    templates = task.templates(fields, LABELS)
    chosen = [choose(templates, f"id{i}") for i in range(200)]
    assert set(chosen) == set(templates)
    assert len(templates) >= 3
    assert chosen == [choose(templates, f"id{i}") for i in range(200)]


@pytest.mark.parametrize("kind", tasks.kinds())
def test_every_kind_has_its_test_columns_and_references(kind):
    task = tasks.get(kind)
    row = task.test_columns(record(kind), LABELS)
    assert set(row) == set(task.TEST_COLUMNS)
    assert task.references(record(kind)) == [task.target(record(kind))]


@pytest.mark.parametrize("kind", tasks.kinds())
def test_braces_and_special_strings_in_a_text_are_plain_text(kind):
    task = tasks.get(kind)
    text = "{document} {0} {context!r} {} <|endoftext|> the array"
    example = render(task, kind, record(kind, **{task.CUT: text}), LABELS, tokenizer(), 400)
    assert text in example.prompt
    assert not example.truncated


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(tasks.kinds()),
    text=st.text(st.characters(codec="utf-8"), max_size=400)
    | st.sampled_from(["the array " * 300, "é" * 500, "😀" * 99]),
    max_tokens=st.integers(32, 200),
    id=st.text(string.ascii_lowercase, min_size=1, max_size=4),
)
def test_a_training_example_fits_and_only_the_end_of_the_long_field_is_cut(
    kind, text, max_tokens, id
):
    task = tasks.get(kind)
    given_record = record(kind, id=id, **{task.CUT: text})
    try:
        example = render(task, kind, given_record, LABELS, tokenizer(), max_tokens)
    except UnusableError:
        assume(False)
    ids = [
        *tokenizer().chat_ids(example.prompt),
        *tokenizer().response_ids(example.response),
        tokenizer().eos_id,
    ]
    assert len(ids) == example.prompt_tokens + example.response_tokens <= max_tokens
    fields = task.fields(given_record, LABELS)
    template = choose(task.templates(fields, LABELS), id)
    before, after = (
        (part.format(**fields) for part in template.split("{" + task.CUT + "}"))
        if fields[task.CUT]
        else ("", "")
    )
    if fields[task.CUT]:
        assert example.prompt.startswith(before)
        assert example.prompt.endswith(after)
        visible = example.prompt[len(before) : len(example.prompt) - len(after)]
        assert fields[task.CUT].startswith(visible)
        assert example.truncated == (visible != fields[task.CUT])


def test_a_cut_keeps_nearly_all_that_fits_and_ends_at_a_word():
    example = render(summarization, "s", record("summarization", n=2000), (), tokenizer(), 128)
    assert example.truncated
    assert 116 <= example.prompt_tokens + example.response_tokens <= 128
    visible = next(line for line in example.prompt.split("\n\n") if "array" in line).removeprefix(
        "Text: "
    )
    assert set(visible.split()) <= set(WORDS)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=200), st.integers(0, 60))
def test_token_prefix_is_a_beginning_of_the_text_within_the_tokens(text, n):
    head = token_prefix(text, n, tokenizer())
    assert text.startswith(head)
    assert (
        head == text or len(tokenizer().encode(head)) <= n + 1
    )  # a merge may differ where the text now ends


def test_a_test_prompt_does_not_depend_on_the_reference():
    prompts = {
        render_test(
            summarization,
            "s",
            record("summarization", n=900, summary=summary),
            (),
            tokenizer(),
            128,
        )[0].prompt
        for summary in ("Zeros.", "the array of zeros " * 200)
    }
    assert len(prompts) == 1
    room = 128 - min(summarization.RESPONSE_TOKENS, 32)
    assert len(tokenizer().chat_ids(prompts.pop())) <= room


def test_a_question_or_instruction_that_alone_is_too_long_is_refused_not_cut():
    long = "what " * 500
    for kind, field in (("question_answering", "question"), ("instructions", "instruction")):
        with pytest.raises(UnusableError, match="too_long"):
            render(tasks.get(kind), kind, record(kind, **{field: long}), (), tokenizer(), 64)


def test_an_answer_that_the_cut_takes_away_drops_a_training_example_and_marks_a_test_example():
    late = record(
        "question_answering",
        context="the array of zeros " * 300 + "hidden treasure",
        answers=["hidden treasure"],
    )
    with pytest.raises(UnusableError, match="answer_cut"):
        render(question_answering, "qa", late, (), tokenizer(), 96)
    example, lost = render_test(question_answering, "qa", late, (), tokenizer(), 96)
    assert lost
    assert example.truncated
    early = {**late, "answers": ["hidden treasure", "the array"]}
    assert not render_test(question_answering, "qa", early, (), tokenizer(), 96)[1]


def test_squad_v2_questions_without_an_answer_are_unanswerable_and_all_prompts_say_so():
    empty = record("question_answering", answers=[])
    assert question_answering.target(empty) == "unanswerable"
    assert question_answering.references(empty) == ["unanswerable"]
    assert not question_answering.lost(empty, "")
    assert question_answering.label(empty) == "unanswerable"
    for i in range(20):
        example = render(
            question_answering,
            "qa",
            record("question_answering", id=f"q{i}"),
            ("answerable", "unanswerable"),
            tokenizer(),
            300,
        )
        assert "unanswerable" in example.prompt
        assert (
            "unanswerable"
            not in render(
                question_answering,
                "qa",
                record("question_answering", id=f"q{i}"),
                ("answerable",),
                tokenizer(),
                300,
            ).prompt
        )


def test_references_are_the_distinct_answers_and_the_target_is_the_first():
    several = record("question_answering", answers=["the array", " zeros ", "the array", ""])
    assert question_answering.references(several) == ["the array", "zeros"]
    assert question_answering.target(several) == "the array"


def test_classification_lists_few_choices_and_leaves_out_many():
    few = render(
        classification,
        "c",
        record("classification"),
        ("negative", "neutral", "positive"),
        tokenizer(),
        300,
    )
    assert "negative, neutral or positive" in few.prompt
    many = tuple(f"category number {i}" for i in range(40))
    assert (
        "category number"
        not in render(classification, "c", record("classification"), many, tokenizer(), 300).prompt
    )
    row = classification.test_columns(record("classification"), many)
    assert row["choices"] == list(many)
    assert row["label"] == "numpy"


def test_a_pair_shows_both_texts():
    pair = record("classification", text_pair="zeros are read")
    for i in range(10):
        prompt = render(
            classification, "c", {**pair, "id": f"p{i}"}, LABELS, tokenizer(), 300
        ).prompt
        assert "zeros are read" in prompt
        assert pair["text"] in prompt
    assert "zeros are read" in classification.test_columns(pair, LABELS)["text"]


def test_an_instruction_without_input_is_asked_alone():
    for i in range(10):
        prompt = render(
            instructions, "i", record("instructions", id=f"i{i}", input=""), (), tokenizer(), 200
        ).prompt
        assert "Input" not in prompt
        assert "Say it again." in prompt


@pytest.mark.parametrize(
    ("kind", "field"), [("summarization", "summary"), ("instructions", "output")]
)
def test_an_empty_response_is_counted_not_learned(kind, field):
    with pytest.raises(UnusableError, match="empty_target"):
        render(tasks.get(kind), kind, record(kind, **{field: " \n"}), (), tokenizer(), 200)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(
        UserError, match=r"sst2.*'clasification'.*summarization.*(?s:.)*Did you mean classification"
    ):
        tasks.get("clasification", "sst2")
    with pytest.raises(UserError, match="pretrain"):
        tasks.get("pretrain")

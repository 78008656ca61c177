"""Shots are training examples, the same in every run, and never at the cost of the question."""

from __future__ import annotations

from typing import Any

from llm.evaluate.answers import Asking, answer
from llm.evaluate.prompts import Shots, prompts
from tests.evaluate.standins import Bytes
from tests.evaluate.test_answers import held_out
from tests.model.conftest import random_model

TRAIN = [(f"question {i}", f"answer {i}") for i in range(20)]


def row(number: int, prompt: str = "Say it.") -> dict[str, Any]:
    return {"id": str(number), "prompt": prompt, "references": ["x"], "truncated": False}


def test_shots_are_different_training_examples_that_depend_on_seed_and_id_only() -> None:
    shots = Shots(3, TRAIN, seed=1)
    drawn = [shots.drawn(str(i)) for i in range(200)]
    assert all(len(set(found)) == 3 and set(found) <= set(TRAIN) for found in drawn)
    assert {shot for found in drawn for shot in found} == set(TRAIN)
    assert drawn == [shots.drawn(str(i)) for i in range(200)]
    assert drawn != [Shots(3, TRAIN, seed=2).drawn(str(i)) for i in range(200)]
    assert len(Shots(9, TRAIN[:4]).drawn("x")) == 4


def test_shots_stand_before_the_prompt_in_the_form_that_the_model_knows() -> None:
    tokenizer, shots = Bytes(), Shots(1, TRAIN[:1])
    chat = prompts(tokenizer, [row(1)], True, 99, shots)
    assert chat.ids == [[257, *b"question 0", 258, *b"answer 0", 256, 257, *b"Say it.", 258]]
    assert chat.form == "prompt:chat, 1-shot"
    plain = prompts(tokenizer, [row(1)], False, 99, shots)
    assert bytes(plain.ids[0]) == b"question 0\nanswer 0\n\nSay it.\n"


def test_what_a_tokenizer_puts_around_a_text_stands_around_shots_and_prompt_once_and_is_never_cut() -> (
    None
):
    tokenizer = Bytes()
    tokenizer.around = (298,), (299,)
    found = prompts(tokenizer, [row(1)], False, 99, Shots(1, TRAIN[:1]))
    assert found.ids == [[298, *b"question 0\nanswer 0\n\nSay it.\n", 299]]
    assert prompts(tokenizer, [row(1)], False, 5).ids == [[298, *b"t.\n", 299]]
    assert prompts(tokenizer, [row(1)], True, 99).ids == [[257, *b"Say it.", 258]]


def test_shots_that_do_not_fit_are_left_out_and_counted_and_the_prompt_stays_whole() -> None:
    tokenizer, shots = Bytes(), Shots(3, TRAIN[:3])
    own = len(tokenizer.chat_ids("Say it."))
    room = own + 2 * len([*tokenizer.chat_ids("question 0"), *b"answer 0", 256])
    found = prompts(tokenizer, [row(1), row(2, "long " * 30)], True, room, shots)
    assert [len(ids) for ids in found.ids] == [room, room]
    assert found.ids[0][-own:] == tokenizer.chat_ids("Say it.")
    counts = {measure.name: measure.column for measure in found.counts}
    assert counts == {"truncated": [0.0, 1.0], "shots": [2.0, 0.0]}


def test_a_plain_answer_after_shots_ends_where_the_next_example_would_begin() -> None:
    test = held_out("summarization", 2)
    with_shots = answer(random_model(), Bytes(), test, Asking(False, shots=Shots(1, [("p", "r")])))
    assert r"stops at '\n\n'" in with_shots.form
    assert (
        "stops at"
        not in answer(
            random_model(), Bytes(), test, Asking(True, shots=Shots(1, [("p", "r")]))
        ).form
    )
    assert "stops at" not in answer(random_model(), Bytes(), test, Asking(False)).form


def test_a_soft_prompt_and_the_turns_mark_stay_where_a_prompt_is_cut() -> None:
    tokenizer = Bytes()
    tokenizer.prefix = (297, 298, 299)
    (ids,) = prompts(tokenizer, [row(1, "0123456789")], True, 8).ids
    assert ids == [297, 298, 299, 257, *b"789", 258]


def test_the_head_of_a_chat_template_stays_where_a_prompt_is_cut() -> None:
    class Template(Bytes):
        def chat_ids(self, prompt: str) -> list[int]:
            return [257, *b"system", 258, *self.encode(prompt), 259]

    (ids,) = prompts(Template(), [row(1, "0123456789")], True, 13).ids
    assert ids == [257, *b"system", 258, *b"6789", 259]

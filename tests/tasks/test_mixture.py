"""Splitting and mixing: disjoint, stable, weighted, deterministic."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm import tasks
from llm.errors import UserError
from llm.tasks import mixture, splits
from llm.tasks.base import Example, UnusableError, key
from llm.tasks.mixture import (
    Dataset,
    allocate,
    chunks,
    draw,
    draw_tasks,
    draw_text,
    shuffled,
    text_share,
)
from llm.tasks.splits import DROPPED, TEST, TRAIN, VALIDATION, carve, normalise, survey
from llm.tokenizer.bpe import Tokenizer

classification = tasks.get("classification")
instructions = tasks.get("instructions")
question_answering = tasks.get("question_answering")
summarization = tasks.get("summarization")
TEXTS = ["alpha", "Alpha!", "beta  gamma", "Beta gamma", "delta", "epsilon zeta", "?!"]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        ["the quick brown fox jumps over the lazy dog and returns an array of zeros"] * 5, 320
    )


def document(i: int, group: str | None = None, split: str = "", text: str | None = None) -> dict:
    text = f"text number {i} of the lazy dog" if text is None else text
    return {
        "id": f"d{i}",
        "document": text,
        "summary": f"dog {i}",
        "group": group or f"d{i}",
        "split": split,
    }


def look(records: list[dict], val: float = 0.2, test: float = 0.2) -> splits.Survey:
    return survey(summarization, "s", records, val, test)


def dataset(
    name: str, records: list[dict], weight: float = 1.0, task=summarization, kind="summarization"
) -> Dataset:
    return Dataset(
        name, kind, task, weight, lambda: records, survey(task, name, records, 0.05, 0.1)
    )


documents = st.lists(
    st.tuples(
        st.sampled_from(["", "g1", "g2", "g3", "g4", "g5"]),
        st.sampled_from(["", "train", "validation", "test"]),
        st.sampled_from(TEXTS),
    ),
    max_size=30,
).map(lambda rows: [document(i, g, s, t) for i, (g, s, t) in enumerate(rows)])


@settings(max_examples=300, deadline=None)
@given(documents, st.sampled_from([0.1, 0.3, 0.45]))
def test_the_sides_share_no_group_and_no_text(records, fraction):
    result = look(records, fraction, fraction)
    groups: dict[int, set[str]] = {TRAIN: set(), VALIDATION: set(), TEST: set()}
    texts: dict[int, set[str]] = {TRAIN: set(), VALIDATION: set(), TEST: set()}
    for record, side in zip(records, result.sides, strict=True):
        if side != DROPPED:
            groups[side].add(record["group"])
            texts[side].add(normalise(record["document"]))
    for sides in (groups, texts):
        assert not sides[TRAIN] & sides[TEST]
        assert not sides[TRAIN] & sides[VALIDATION]
        assert not sides[VALIDATION] & sides[TEST]
    assert sum(result.dropped.values()) == int((result.sides == DROPPED).sum())


@settings(max_examples=200, deadline=None)
@given(documents)
def test_the_sources_own_sides_are_kept_unless_dropped(records):
    result = look(records)
    given_sides = {record["split"] for record in records} - {""}
    for record, side in zip(records, result.sides, strict=True):
        if record["split"] == "test":
            assert side == TEST
        elif record["split"] == "validation":
            assert side in (VALIDATION, DROPPED)
        elif side == TEST:
            assert "test" not in given_sides
        elif side == VALIDATION:
            assert "validation" not in given_sides


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.randoms(use_true_random=False))
def test_adding_records_never_moves_old_ones(old, new, rng):
    records = [document(i, group=f"module{i % 17}") for i in range(old + new)]
    before = dict(zip((r["id"] for r in records[:old]), look(records[:old]).sides, strict=True))
    rng.shuffle(records)
    after = dict(zip((r["id"] for r in records), look(records).sides, strict=True))
    assert all(after[name] == side for name, side in before.items())


def test_the_split_takes_about_the_fractions_asked_for():
    sides = look([document(i) for i in range(4000)], 0.05, 0.1).sides
    counts = np.bincount(sides, minlength=4)
    assert counts[DROPPED] == 0
    assert abs(counts[TEST] - 400) < 80
    assert abs(counts[VALIDATION] - 200) < 60


def test_a_group_is_on_the_same_side_in_every_task():
    group = next(f"m{i}" for i in range(100) if carve(f"m{i}", 0.1, 0.2) == TEST)
    question = {
        "id": "q",
        "context": "c",
        "question": "?",
        "answers": [],
        "group": group,
        "split": "",
    }
    for task, record in ((summarization, document(0, group)), (question_answering, question)):
        assert survey(task, "t", [record], 0.1, 0.2).sides.tolist() == [TEST]


def test_equal_texts_without_a_group_stay_together_and_none_is_lost():
    records = [document(i, text=f"Same text, {i // 5}.") for i in range(500)]
    result = look(records)
    assert not result.dropped
    assert all(len(set(result.sides[i : i + 5])) == 1 for i in range(0, 500, 5))
    assert set(result.sides) == {TRAIN, VALIDATION, TEST}


def test_missing_sides_come_out_of_train_only_where_the_source_marks_everything():
    marked = [document(i, split="train") for i in range(300)] + [document(1000, split="test")]
    sides = look(marked).sides
    assert (sides[:300] == VALIDATION).sum() > 20
    assert (sides[:300] == TEST).sum() == 0
    mixed = [document(i, split="train") for i in range(300)] + [
        document(1000 + i) for i in range(300)
    ]
    assert set(look(mixed).sides[:300]) == {TRAIN}


def test_what_test_holds_is_dropped_from_the_others_and_counted_by_reason():
    records = [
        document(0, "a", "test", "Some text."),
        document(1, "a", "train", "another"),
        document(2, "b", "train", "some TEXT"),
        document(3, "c", "validation", "third"),
        document(4, "d", "train", "third!"),
        document(5, "e", "train", "fourth"),
    ]
    result = look(records)
    assert result.sides.tolist() == [TEST, DROPPED, DROPPED, VALIDATION, DROPPED, TRAIN]
    assert result.dropped == {"group_in_test": 1, "text_in_test": 1, "text_in_validation": 1}


def question(i: int, context: str, group: str, split: str) -> dict:
    text = {"context": context, "question": f"{i}?", "answers": []}
    return {"id": f"q{i}", "group": group, "split": split, **text}


def test_what_one_task_tests_with_no_other_trains_or_validates_on():
    squad = [question(0, "The first.", "A", "train"), question(1, "The second.", "B", "test")]
    squad2 = [  # the same articles, divided otherwise
        question(0, "The first.", "A", "test"),
        question(1, "the SECOND", "other title", "train"),
        question(2, "The third.", "B", "validation"),
        question(3, "The fourth.", "C", "train"),
    ]
    summaries = [document(0, "D", "train", "The second?"), document(1, "E", "train", "The fourth.")]
    tasks = [
        (question_answering, "squad", squad),
        (question_answering, "squad2", squad2),
        (summarization, "s", summaries),
    ]
    placed = [splits.assign_sides(task, name, records, 0.01, 0.01) for task, name, records in tasks]
    one, two, three = splits.separate_tests(placed)
    assert one.sides.tolist() == [DROPPED, TEST]
    assert one.dropped == {"group_in_test_of_squad2": 1}
    assert two.sides.tolist() == [TEST, DROPPED, DROPPED, TRAIN]
    assert two.dropped == {"group_in_test_of_squad": 1, "text_in_test_of_squad": 1}
    assert three.sides.tolist() == [DROPPED, TRAIN]
    assert three.dropped == {"text_in_test_of_squad": 1}
    assert one.labels == {}


@settings(max_examples=100, deadline=None)
@given(documents, documents)
def test_the_test_side_of_no_task_is_changed_by_another(first, second):
    placed = [
        splits.assign_sides(summarization, name, rows, 0.2, 0.2)
        for name, rows in (("a", first), ("b", second))
    ]
    for records, together in zip((first, second), splits.separate_tests(placed), strict=True):
        alone = look(records)
        assert ((alone.sides == TEST) == (together.sides == TEST)).all()
        assert set(together.sides[alone.sides != together.sides]) <= {DROPPED}


def test_labels_are_counted_in_train_and_strange_ones_elsewhere_are_dropped():
    rows = [
        ("b", "train"),
        ("a", "train"),
        ("b", "train"),
        ("new", "test"),
        ("a", "test"),
        ("b", "validation"),
    ]
    records = [
        {
            "id": str(i),
            "text": f"t{i}",
            "text_pair": None,
            "label": label,
            "group": str(i),
            "split": split,
        }
        for i, (label, split) in enumerate(rows)
    ]
    result = survey(classification, "c", records, 0.1, 0.1)
    assert list(result.labels.items()) == [("a", 1), ("b", 2)]
    assert result.dropped == {"label_not_in_train": 1}
    assert result.unknown == ("new",)
    assert result.sides.tolist() == [TRAIN, TRAIN, TRAIN, DROPPED, TEST, VALIDATION]


def test_unanswerable_questions_in_test_stay_where_training_has_none():
    records = [
        {
            "id": str(i),
            "context": f"c{i}",
            "question": "?",
            "answers": answers,
            "group": str(i),
            "split": split,
        }
        for i, (answers, split) in enumerate([(["c0"], "train"), ([], "test")])
    ]
    result = survey(question_answering, "qa", records, 0.1, 0.1)
    assert result.sides.tolist() == [TRAIN, TEST]
    assert list(result.labels) == ["answerable"]


def test_wrong_columns_and_split_words_are_refused_by_name():
    with pytest.raises(
        UserError, match=r"data/raw/x has no column context, question, answers.*kind"
    ):
        survey(question_answering, "x", [document(0)], 0.1, 0.1)
    with pytest.raises(UserError, match=r"record d0 has split 'dev'"):
        look([document(0, split="dev")])


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.floats(0, 100), st.integers(0, 500)), min_size=1
    ),
    st.integers(0, 1000),
)
def test_shares_are_whole_within_what_there_is_and_use_it_up(tasks, total):
    weights = {name: weight for name, (weight, _) in tasks.items()}
    available = {name: number for name, (_, number) in tasks.items()}
    shares = allocate(weights, available, total)
    assert all(0 <= shares[name] <= available[name] for name in tasks)
    assert all(shares[name] == 0 for name in tasks if weights[name] == 0)
    assert sum(shares.values()) == min(
        total, sum(n for name, n in available.items() if weights[name] > 0)
    )


def test_shares_follow_the_weights_and_the_rest_is_redistributed_by_them():
    plenty = {"a": 10_000, "b": 10_000, "c": 10_000}
    assert allocate({"a": 1, "b": 2, "c": 1}, plenty, 1000) == {"a": 250, "b": 500, "c": 250}
    assert allocate({"a": 1, "b": 1, "c": 2}, {**plenty, "b": 50}, 950) == {
        "a": 300,
        "b": 50,
        "c": 600,
    }
    assert allocate({"a": 1, "b": 1, "c": 1}, plenty, 100) == {"a": 34, "b": 33, "c": 33}


def build(item: int) -> Example:
    if item % 7 == 0:
        raise UnusableError("sevens")
    return Example(str(item), "t", "", "x", False, 0, 1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 10**6), unique=True, max_size=80),
    st.integers(0, 40),
    st.randoms(use_true_random=False),
)
def test_a_draw_takes_the_lowest_usable_orders_whatever_comes_first(items, quota, rng):
    candidates = [(key("o", item), item) for item in items]
    expected = [item for _, item in sorted(candidates) if item % 7][:quota]
    first = draw(candidates, quota, build)
    rng.shuffle(candidates)
    second = draw(candidates, quota, build)
    assert sorted(e.id for e in first.examples) == sorted(str(i) for i in expected)
    assert sorted(first.examples) == sorted(second.examples)
    assert first.dropped == second.dropped


def test_tasks_are_drawn_by_weight_and_a_small_one_gives_all_it_has_once():
    big = dataset("big", [document(i) for i in range(900)], 3.0)
    also = dataset("also", [document(i, text=f"other {i}") for i in range(900)], 1.0)
    small = dataset("small", [document(i, text=f"few {i}") for i in range(30)], 2.0)
    unused = dataset("unused", [document(i, text=f"none {i}") for i in range(30)], 0.0)
    drawn = draw_tasks([big, also, small, unused], TRAIN, 424, tokenizer(), 1, 64)
    sizes = {name: len(d.examples) for name, d in drawn.items()}
    few = small.survey.count(TRAIN)
    assert sizes["small"] == few
    assert sizes["unused"] == 0
    assert sum(sizes.values()) == 424
    assert abs(sizes["big"] - 3 * sizes["also"]) <= 3
    assert all(len({e.id for e in d.examples}) == len(d.examples) for d in drawn.values())


def test_examples_that_cannot_be_used_are_replaced_by_others():
    good = [document(i) for i in range(300)]
    bad = [{**document(1000 + i), "summary": ""} for i in range(600)]
    mixed = dataset("mixed", good + bad)
    other = dataset("other", [document(i, text=f"other {i}") for i in range(900)])
    usable = sum(1 for r in mixed.side(TRAIN) if r["summary"])
    drawn = draw_tasks([mixed, other], TRAIN, 800, tokenizer(), 1, 64)
    assert len(drawn["mixed"].examples) == usable
    assert len(drawn["other"].examples) == 800 - usable
    assert drawn["mixed"].dropped == {"empty_target": mixed.survey.count(TRAIN) - usable}


def test_the_seed_decides_the_draw_and_a_larger_draw_keeps_the_smaller():
    d = dataset("d", [document(i) for i in range(600)])
    ids = {
        (seed, n): {e.id for e in draw_tasks([d], TRAIN, n, tokenizer(), seed, 64)["d"].examples}
        for seed in (1, 2)
        for n in (50, 120)
    }
    assert ids[1, 50] < ids[1, 120]
    assert ids[1, 50] != ids[2, 50]


def test_the_file_order_of_the_records_does_not_matter():
    records = [document(i) for i in range(200)]
    a = draw_tasks([dataset("d", records)], TRAIN, 60, tokenizer(), 3, 64)["d"].examples
    b = draw_tasks([dataset("d", records[::-1])], TRAIN, 60, tokenizer(), 3, 64)["d"].examples
    assert shuffled(a, 3) == shuffled(b, 3)
    assert [e.id for e in shuffled(a, 3)] != [e.id for e in shuffled(a, 4)]
    assert [e.id for e in shuffled(a, 3)] != sorted(e.id for e in a)


def test_plain_text_comes_from_the_asked_side_of_the_pretraining_split_and_fits():
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    rng = random.Random(0)
    pretraining = [
        {
            "id": f"p{i}",
            "text": f"Document {i}. "
            + ". ".join(" ".join(rng.choices(words, k=8)) for _ in range(i)),
            "held_out": i % 3 == 0,
        }
        for i in range(120)
    ]
    whole = {d["id"]: d for d in pretraining}
    for validation in (False, True):
        drawn = draw_text(pretraining, validation, 40, tokenizer(), 1, 48)
        assert len(drawn.examples) == 40
        for e in drawn.examples:
            source = whole[e.id.split("#")[0]]
            assert source["held_out"] == validation
            assert e.response in source["text"]
            assert e.prompt == ""
            assert e.task == "language_modeling"
            assert len(tokenizer().encode(e.response)) + 1 == e.response_tokens <= 48


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("ab. \n"), max_size=200), st.integers(2, 50))
def test_chunks_cover_the_text_in_order_within_the_size(text, size):
    pieces = list(chunks(text, size))
    assert all(0 < len(piece) <= size for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_the_share_of_plain_text_is_of_the_whole():
    assert text_share(900, 0.1) == 100
    assert text_share(900, 0.0) == 0


def test_held_out_examples_come_in_the_order_of_a_hash_of_their_ids_in_buckets(monkeypatch):
    d = dataset(
        "d", [document(i, split="test") for i in range(100)] + [document(500, split="train")]
    )
    monkeypatch.setattr(mixture, "BUCKET", 30)
    buckets = list(mixture.held_out(d, tokenizer(), 64, Counter(), Counter()))
    assert len(buckets) == 4
    ids = [row["id"] for bucket in buckets for row in bucket]
    assert ids == sorted((f"d{i}" for i in range(100)), key=lambda i: key("test", i))
    assert all(
        row["references"] == [row["id"].replace("d", "dog ")]
        for bucket in buckets
        for row in bucket
    )


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "holds no records"),
        ([document(i, split="test") for i in range(3)], "no training example among 3"),
        ([document(i, "one", "train") for i in range(3)], "no test example among 3"),
    ],
)
def test_a_task_with_an_empty_side_is_refused(records, message):
    d = Dataset(
        "mine", "summarization", summarization, 1.0, lambda: records, look(records, 0.001, 0.001)
    )
    with pytest.raises(UserError, match=message):
        mixture.check(d)


def test_a_task_of_weight_zero_may_have_test_examples_only():
    records = [document(i, split="test") for i in range(3)]
    mixture.check(dataset("mine", records, weight=0.0))


def test_classification_with_one_label_is_refused():
    records = [
        {
            "id": str(i),
            "text": f"t{i}",
            "text_pair": None,
            "label": "x",
            "group": str(i),
            "split": ["train", "test"][i % 2],
        }
        for i in range(6)
    ]
    with pytest.raises(UserError, match=r"two labels or more.*found x"):
        mixture.check(dataset("c", records, task=classification, kind="classification"))


def test_instructions_with_equal_wording_but_another_input_are_different_texts():
    records = [
        {
            "id": str(i),
            "instruction": "Translate.",
            "input": f"word {i}",
            "output": "x",
            "group": "",
            "split": split,
        }
        for i, split in enumerate(["train", "test"])
    ]
    for record in records:
        record["group"] = record["id"]
    assert survey(instructions, "i", records, 0.1, 0.1).sides.tolist() == [TRAIN, TEST]

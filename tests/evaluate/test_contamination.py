"""A planted overlap is found, a clean text is not blamed, and blocks change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from llm.evaluate.contamination import Contamination
from llm.text import ngrams


def sequence(start: int, count: int) -> str:
    return " ".join(f"w{i}" for i in range(start, start + count))


def test_a_planted_run_of_13_words_is_found_whatever_its_case_and_punctuation() -> None:
    check = Contamination()
    check.add_example("qa", [sequence(0, 40), "short"])
    check.add_example("qa", [sequence(1000, 40)])
    check.add_example("summaries", [sequence(2000, 13)])
    check.add_example("summaries", [sequence(2000, 12)])  # too short to hold a run
    check.scan("Before it: " + sequence(20, 13).upper().replace(" ", ", ") + "! after it")
    check.scan(sequence(2000, 13))
    assert check.fractions() == {"qa": 0.5, "summaries": 0.5}


def test_twelve_words_or_a_run_across_two_texts_are_no_overlap() -> None:
    check = Contamination()
    check.add_example("qa", [sequence(0, 26)])
    check.scan("x " + sequence(0, 12) + " y")
    check.scan(sequence(0, 6))
    check.scan(sequence(6, 7))  # continues the text before it, in another document
    assert check.fractions() == {"qa": 0.0}


def test_a_run_across_input_and_reference_is_no_overlap() -> None:
    check = Contamination()
    check.add_example("qa", [sequence(0, 7), sequence(7, 6)])
    check.scan(sequence(0, 13))
    assert check.fractions() == {"qa": 0.0}


def test_order_matters() -> None:
    check = Contamination()
    check.add_example("qa", [sequence(0, 13)])
    check.scan(" ".join(reversed(sequence(0, 13).split())))
    assert check.fractions() == {"qa": 0.0}


def test_the_size_of_a_block_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = [" ".join(f"w{i}" for i in rng.integers(0, 3, size=60)) for _ in range(40)]
    tests = [" ".join(f"w{i}" for i in rng.integers(0, 3, size=14)) for _ in range(60)]
    tests += [" ".join(text.split()[i : i + 14]) for i, text in enumerate(train)]
    results = []
    for block in (1, 10**6):
        monkeypatch.setattr(ngrams, "BLOCK", block)
        check = Contamination()
        for text in tests:
            check.add_example("t", [text])
        for text in train:
            check.scan(text)
        results.append(check.fractions()["t"])
    plain = {tuple(text.split()[i : i + 13]) for text in train for i in range(48)}
    expected = [any(tuple(text.split()[i : i + 13]) in plain for i in range(2)) for text in tests]
    assert results == [sum(expected) / 100] * 2
    assert 40 <= sum(expected) < 60


def test_nothing_to_compare_is_clean() -> None:
    check = Contamination()
    check.add_example("t", [""])
    check.add_example("t", [])
    check.scan("")
    assert check.fractions() == {"t": 0.0}


def test_pretraining_and_finetuning_text_are_told_apart_and_an_example_in_both_counts_once() -> (
    None
):
    check = Contamination()
    for start in (0, 100, 200, 300):
        check.add_example("qa", [sequence(start, 20)])
    check.scan(sequence(0, 13) + " other " + sequence(100, 13))
    check.scan(sequence(100, 13), "finetuning")
    check.scan(sequence(200, 13), "finetuning")
    assert check.fractions("pretraining") == {"qa": 0.5}
    assert check.fractions("finetuning") == {"qa": 0.5}
    assert check.fractions() == {"qa": 0.75}

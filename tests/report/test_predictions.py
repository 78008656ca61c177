"""The section on predictions: overlaps, order, bins and other decoding are what they say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.report import commentary, predictions
from tests.report import workspace

WORDS = st.lists(
    st.sampled_from(["The", "the", "cat", "dog.", "sat,", "(n)", "on", "é"]), max_size=9
).map(" ".join)


def test_words_that_both_texts_have_in_one_order_are_marked_whatever_their_case() -> None:
    prediction, reference = predictions.overlap("A cat, the dog", "Here: THE Cat, the bird")
    assert prediction == [("A ", False), ("cat, the", True), (" dog", False)]
    assert reference == [("Here: THE ", False), ("Cat, the", True), (" bird", False)]
    assert predictions.overlap("", "x") == ([], [("x", False)])


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_pieces_put_together_are_the_texts_and_share_their_words(a: str, b: str) -> None:
    first, second = predictions.overlap(a, b)
    assert "".join(text for text, _ in first) == a
    assert "".join(text for text, _ in second) == b
    marked = [
        [w for text, common in side if common for w in re.findall(r"\w+", text.lower())]
        for side in (first, second)
    ]
    assert marked[0] == marked[1]
    assert (predictions.shared(first) > 0) == bool(set(_words(a)) & set(_words(b)))


def _words(text: str) -> list[str]:
    return [token.strip(".,()").lower() for token in text.split()]


def test_the_best_come_first_and_of_choices_the_surest() -> None:
    written = {"id": ["a", "b", "c"], "f1": [0.2, 1.0, 0.5]}
    assert predictions.ranking(written, "f1") == [1, 2, 0]
    chosen = {
        "id": list("abcd"),
        "accuracy": [1.0, 0.0, 1.0, 0.0],
        "log_likelihoods": [[-1.0, -2.0], [-1.0, -9.0], [-5.0, -1.0], [-3.0, -3.1]],
    }
    assert predictions.ranking(chosen, "accuracy") == [2, 0, 3, 1]


def test_of_several_references_the_one_in_common_is_shown() -> None:
    columns = {
        "prompt": ["p"],
        "prediction": ["two words"],
        "references": [["other", "these two words"]],
        "f1": [0.8],
    }
    shown = predictions.example(columns, 0, "f1", str)
    assert shown["reference"] == [("these ", False), ("two words", True)]
    missing = columns | {"references": [None]}
    assert predictions.example(missing, 0, "f1", str)["reference"] == []


def test_bins_hold_every_prompt_once() -> None:
    rng = np.random.default_rng(0)
    for lengths in (rng.integers(5, 400, 100), np.full(10, 7), np.array([3])):
        values = rng.random(len(lengths))
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, 6)).round().astype(int))
        bins = predictions.by_length(lengths, values, edges)
        assert sum(b["n"] for b in bins) == len(lengths)
        assert (
            abs(
                np.average([b["mean"] for b in bins], weights=[b["n"] for b in bins])
                - values.mean()
            )
            < 1e-12
        )


def test_other_decoding_stands_beside_the_same_examples() -> None:
    own = {"f1": [1.0] * 20 + [0.0] * 20}
    (found,) = predictions.variants(workspace.evaluation(), "question_answering", "f1", own)
    assert (found["n"], found["value"], found["usual"]) == (20, 0.64, 1.0)
    assert found["how"] == "beam search, 4 beams, at most 32 tokens"


def test_remarks_say_how_sure_a_gain_is_and_what_was_odd() -> None:
    found = commentary.remarks(workspace.evaluation(), workspace.comparison())
    assert found["classification"] == [
        "Finetuned against base, paired by example (approximate randomisation): "
        "Accuracy +0.460 (0.400 to 0.520, p = 0.034)."
    ]
    assert found["question_answering"][0].startswith("Finetuned: 4.7 % of the answers were cut")
    assert "summarization" not in found
    assert commentary.forgetting({}) is None
    sentence = commentary.forgetting(workspace.comparison()) or ""
    assert re.search(r"\(difference [+−][\d.]+ to [+−][\d.]+, (no )?more than chance\)", sentence)
    sources = commentary.by_source(workspace.evaluation())["language_modeling"]
    assert sources["rows"] == [("numpy", 40, [1.111, None]), ("others", 20, [1.777, None])]


def test_test_sets_are_told_apart_by_their_examples_and_not_by_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A champion's score is compared on the same examples only."""
    workspace.full(tmp_path)
    monkeypatch.chdir(tmp_path)
    digest, count = predictions.tests("finetuned")
    assert count == 40 * len(workspace.TASKS)
    path = Path("metrics/predictions/finetuned-classification.parquet")
    rows = pq.read_table(path).to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "prediction": "other"} for row in rows]), path)
    assert predictions.tests("finetuned") == (digest, count)
    pq.write_table(pa.Table.from_pylist(rows[:10]), path)
    fewer = predictions.tests("finetuned")
    assert fewer[0] != digest
    assert fewer[1] == count - 30

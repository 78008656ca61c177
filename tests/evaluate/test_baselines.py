"""Baselines on cases small enough to check by hand."""

from __future__ import annotations

from llm.evaluate import baselines, metrics

CONTEXT = "Alpha opens files. The axis argument names the dimension to sum. Beta closes them. Gamma is new."


def test_lead_is_the_first_sentences() -> None:
    assert baselines.lead(CONTEXT, 1) == "Alpha opens files."
    assert (
        baselines.lead(CONTEXT, 2)
        == "Alpha opens files.\nThe axis argument names the dimension to sum."
    )
    assert baselines.lead("", 3) == ""


def test_the_usual_number_of_sentences_is_the_training_median() -> None:
    assert baselines.usual_sentences(["One.", "One. Two. Three.", "One\nTwo\nThree"]) == 3
    assert baselines.usual_sentences([]) == 1


def test_random_sentences_are_of_the_text_in_order_and_depend_on_the_id_only() -> None:
    drawn = {baselines.random_sentences(CONTEXT, 2, 0, f"id{i}") for i in range(60)}
    assert len(drawn) == 6  # all pairs of four sentences
    for text in drawn:
        first, second = text.split("\n")
        assert CONTEXT.index(first) < CONTEXT.index(second)
    assert baselines.random_sentence(CONTEXT, 0, "x") == baselines.random_sentence(CONTEXT, 0, "x")
    assert len({baselines.random_sentence(CONTEXT, 0, f"id{i}") for i in range(60)}) == 4
    assert baselines.random_sentence("", 0, "x") == ""


def test_the_sliding_window_finds_the_sentence_that_the_question_is_about() -> None:
    assert baselines.sliding_window(CONTEXT, "What does the axis argument name?").startswith(
        "The axis argument"
    )
    assert baselines.sliding_window(CONTEXT, "Which closes?") == "Beta closes them."
    assert (
        baselines.sliding_window(CONTEXT, "zzz") == "Alpha opens files."
    )  # nothing matches: the first
    assert baselines.sliding_window("", "What?") == ""


def test_a_rare_word_weighs_more_than_a_common_one_in_the_sliding_window() -> None:
    context = "It is the the the case. The kurtosis is high."
    assert baselines.sliding_window(context, "the kurtosis") == "The kurtosis is high."


REFERENCE = """linear_model.lasso_path: Compute the path. It is long.
X: Training data. Pass directly as Fortran-contiguous data.
Returns alphas: The alphas along the path, e.g. 0.1. In order.
Returns: A path. Or two.
Raises ValueError: If X is empty."""


def test_the_name_match_reads_the_line_of_the_asked_name() -> None:
    def answer(question: str) -> str:
        return baselines.name_match(REFERENCE, question)

    assert answer("In `linear_model.lasso_path`, what is the argument `X`?") == "Training data"
    assert answer("What does `lasso_path` return as `alphas`?") == (
        "The alphas along the path, e.g. 0.1"
    )
    assert answer("What is the result of `linear_model.lasso_path`?") == "A path"
    assert answer("When does `lasso_path` raise `ValueError`?") == "If X is empty"
    assert answer("What is `linear_model.lasso_path`?") == "Compute the path"
    for question in ("What is `Y`?", "What data is X?", "What makes it raise `KeyError`?"):
        assert answer(question) == baselines.sliding_window(REFERENCE, question), "no such line"


def test_majority_is_the_commonest_training_label() -> None:
    assert baselines.majority(["b", "a", "b", "a", "c"]) == "a"  # of equals the first by name
    assert baselines.majority([]) == ""


def test_tfidf_learns_words_and_falls_back_to_the_majority() -> None:
    texts = ["tensor gradient", "tensor device", "frame column", "frame index"] * 3
    labels = ["torch", "torch", "pandas", "pandas"] * 3
    assert baselines.tfidf(texts, labels, ["a tensor", "the column of a frame"]) == [
        "torch",
        "pandas",
    ]
    assert baselines.tfidf(["x"], ["only"], ["y", "z"]) == ["only", "only"]


def test_every_kind_has_a_baseline_with_one_answer_a_row() -> None:
    row = {
        "id": "1", "prompt": "p", "document": CONTEXT, "context": CONTEXT, "question": "axis?", "text": "t",
        "choices": ["a", "b"], "instruction": "Do it. Now.", "input": "", "references": ["sum"],
    }  # fmt: skip
    names = {
        "summarization": {"lead", "random"},
        "question_answering": {"random", "sliding_window", "name_match"},
        "classification": {"majority", "random", "tfidf"},
        "instructions": {"lead"},
    }
    for kind, expected in names.items():
        found = baselines.answers(
            kind, [row, {**row, "id": "2"}], [("a prompt", "a"), ("b prompt", "b")], 0
        )
        assert set(found) == expected
        assert all(len(texts) == 2 and all(texts) for texts in found.values())
    train = [("red tensor", "a"), ("blue frame", "b")]
    more = baselines.answers("classification", [row], train[:1], 0, train)
    assert set(more) == {"majority", "random", "tfidf", "tfidf_all"}
    assert more["tfidf"] == ["a"]


def test_questions_without_an_answer_have_the_baseline_that_always_says_so() -> None:
    rows = [
        {"id": str(i), "context": CONTEXT, "question": "Which?", "references": references}
        for i, references in enumerate([["sum"], ["unanswerable"], [], ["Unanswerable.", "the"]])
    ]
    found = baselines.answers("question_answering", rows, [], 0)["unanswerable"]
    scores = [
        m.column for m in metrics.question_answering(found, [row["references"] for row in rows])
    ]
    assert scores == [[0.0, 1.0, 1.0, 1.0]] * 2, (
        "exact match and F1, as the official script of SQuAD 2.0"
    )
    assert "unanswerable" not in baselines.answers("question_answering", rows[:1], [], 0)

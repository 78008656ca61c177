"""Scores equal those of the official implementations, and degenerate input has a defined score."""

from __future__ import annotations

import re
import string
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.evaluate import metrics

VOCABULARY = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    ".",
    ",",
    "Returns",
    "array",
    "of",
    "shape",
    "(",
    "n",
    ")",
    "it's",
]
TEXTS = st.lists(st.sampled_from(VOCABULARY), max_size=12).map(" ".join)


# -- BLEU


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXTS, st.lists(TEXTS, min_size=1, max_size=3)), min_size=1, max_size=8))
def test_bleu_of_summed_statistics_is_sacrebleus_corpus_bleu(
    pairs: list[tuple[str, list[str]]],
) -> None:
    from sacrebleu.metrics import BLEU

    predictions, references = [p for p, _ in pairs], [r for _, r in pairs]
    most = max(map(len, references))
    streams = [[texts[i] if i < len(texts) else None for texts in references] for i in range(most)]
    official = BLEU()
    expected = official.corpus_score(predictions, streams)  # type: ignore[arg-type]
    measure = metrics.bleu(predictions, references)
    assert measure.value() == pytest.approx(expected.score, abs=1e-9)
    assert measure.signature == f"{official.get_signature()}|scale:0-100"


def test_bleu_of_a_hand_computed_corpus() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples, 0 of 3 quadruples (smoothed to 1/2): equal
    # lengths, no penalty.
    measure = metrics.bleu(["the cat sat on the mat"], [["the cat lay on the mat"]])
    assert measure.value() == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * (1 / 2) / 3) ** 0.25)
    assert "version:" in measure.signature
    assert "tok:13a" in measure.signature


def test_empty_predictions_and_empty_references_have_scores() -> None:
    assert metrics.bleu(["", ""], [["a cat"], [""]]).value() == 0.0
    assert metrics.bleu(["a cat"], [[]]).value() == 0.0
    assert [m.value() for m in metrics.rouge(["", "a cat"], [["a cat"], []])] == [0.0] * 4
    assert metrics.mean_length(["", "two words."]).value() == 1.0


# -- ROUGE


def test_rougelsum_reads_sentences_where_rougel_reads_one_text() -> None:
    prediction = "The dog barked. The cat sat on the mat."
    reference = "The cat sat on the mat.\nThe dog barked."
    scores = {m.name: m.value() for m in metrics.rouge([prediction], [[reference]])}
    assert scores["rouge1"] == 1.0
    assert scores["rougeLsum"] == 1.0  # each sentence is found, in whatever order
    assert scores["rougeL"] == pytest.approx(
        6 / 9
    )  # the longest common subsequence is the cat's sentence
    from rouge_score.rouge_scorer import RougeScorer

    unsplit = RougeScorer(["rougeLsum"], use_stemmer=True).score(
        reference.replace("\n", " "), prediction
    )
    assert unsplit["rougeLsum"].fmeasure == pytest.approx(
        6 / 9
    )  # what a text without line breaks would get


def test_rouge_equals_rouge_score_on_split_text_and_takes_the_best_reference() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    prediction = "Computes the running means. Returns arrays."
    references = ["Unrelated words here.", "Compute the mean.\nReturn an array."]
    official = RougeScorer(list(metrics.ROUGE), use_stemmer=True)
    expected = official.score(references[1], "Computes the running means.\nReturns arrays.")
    for measure in metrics.rouge([prediction], [references]):
        assert measure.value() == expected[measure.name].fmeasure
        assert "rouge-score:" in measure.signature
        assert "stemmer:porter" in measure.signature


CHINESE = "今天天气很好。我们去公园玩。", "我们今天去公园。天气很好。"
RUSSIAN = "Погода хорошая. Мы идём в парк.", "Мы сегодня идём в парк. Погода хорошая."


@pytest.mark.parametrize(("prediction", "reference"), [CHINESE, RUSSIAN])
def test_rouge_of_other_scripts_is_not_zero_and_its_signature_says_how(
    prediction: str, reference: str
) -> None:
    found = {m.name: m for m in metrics.rouge([prediction, reference], [[reference], [reference]])}
    assert found["rouge1"].column == [pytest.approx(found["rouge1"].column[0]), 1.0]  # type: ignore[index]
    for measure in found.values():
        assert 0.3 < measure.value() < 1.0
        assert (
            "|tokens:words of any script, characters of scripts without spaces|"
            in measure.signature
        )
    assert found["rougeLsum"].value() > found["rougeL"].value(), "sentences are told apart"


def test_rouge_of_russian_is_that_of_its_words_in_other_letters() -> None:
    table = {
        c: f"q{chr(97 + i // 26)}{chr(97 + i % 26)}"
        for i, c in enumerate("абвгдеёжзийклмнопрстуфхцчшщъыьэюя")
    }
    latin = ["".join(table.get(c, c) for c in text.lower()) for text in RUSSIAN]
    russian, expected = (metrics.rouge([a], [[b]])[0].value() for a, b in (RUSSIAN, latin))
    assert russian == expected == pytest.approx(12 / 13)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5))
def test_english_among_another_language_scores_as_rouge_score_scores_it(
    pairs: list[tuple[str, str]],
) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    official = RougeScorer(list(metrics.ROUGE), use_stemmer=True)
    expected = [official.score(metrics.by_line(b), metrics.by_line(a)) for a, b in pairs]
    alone = metrics.rouge([a for a, _ in pairs], [[b] for _, b in pairs])
    mixed = metrics.rouge([*(a for a, _ in pairs), "天气"], [*([b] for _, b in pairs), ["天气"]])
    for one, other in zip(alone, mixed, strict=True):
        assert one.column == [score[one.name].fmeasure for score in expected]
        assert "|stemmer:porter|" in one.signature
        assert other.column == [*one.column, 1.0]


def test_bleu_of_chinese_and_japanese_is_sacrebleus_with_the_tokenizer_that_its_signature_names() -> (
    None
):
    from sacrebleu.metrics import BLEU

    japanese = "今日はとても天気がいいです。", "今日は天気がとてもいいです。"
    for tokenizer, (prediction, reference) in {
        "zh": CHINESE,
        "char": japanese,
        "13a": RUSSIAN,
    }.items():
        measure = metrics.bleu([prediction], [[reference]])
        official = BLEU(tokenize=tokenizer)
        assert measure.value() == pytest.approx(
            official.corpus_score([prediction], [[reference]]).score
        )
        assert f"|tok:{tokenizer}|" in measure.signature
        assert measure.value() > 5


# -- SQuAD


def official_normalize(s: str) -> str:
    """`normalize_answer` of SQuAD's evaluate-v1.1.py, transcribed."""

    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return " ".join(remove_articles(remove_punc(s.lower())).split())


def official_f1(a_gold: str, a_pred: str) -> float:
    """`compute_f1` of SQuAD's evaluate-v2.0.py, transcribed."""
    gold, pred = official_normalize(a_gold).split(), official_normalize(a_pred).split()
    num_same = sum((Counter(gold) & Counter(pred)).values())
    if len(gold) == 0 or len(pred) == 0:
        return int(gold == pred)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred), 1.0 * num_same / len(gold)
    return (2 * precision * recall) / (precision + recall)


@settings(max_examples=300, deadline=None)
@given(
    st.text(alphabet="aAthe nNé.-,'’\n\u00a0İ", max_size=25),
    st.text(alphabet="aAthe nNé.-,'’\nİ", max_size=25),
)
def test_exact_match_and_f1_follow_the_official_script(gold: str, predicted: str) -> None:
    assert metrics.normalize_answer(gold) == official_normalize(gold)
    assert metrics.exact_match(predicted, gold) == float(
        official_normalize(gold) == official_normalize(predicted)
    )
    assert metrics.token_f1(predicted, gold) == pytest.approx(official_f1(gold, predicted))


def test_exact_match_and_f1_of_hand_computed_answers() -> None:
    predictions = ["The Denver Broncos!", "Denver", "in the year 1996", ""]
    references = [
        ["Denver Broncos", "Broncos"],
        ["Denver Broncos"],
        ["1996", "the year of 1996"],
        ["x"],
    ]
    exact, f1 = metrics.question_answering(predictions, references)
    assert exact.column == [1.0, 0.0, 0.0, 0.0]
    # "in year 1996" against "year of 1996": 2 shared words of 3 and 3.
    assert f1.column == pytest.approx([1.0, 2 / 3, 2 / 3, 0.0])
    assert exact.value() == 0.25


def test_a_question_without_an_answer_wants_an_empty_one() -> None:
    references = [["unanswerable"], [], ["unanswerable"], ["Paris"], ["the", "Paris"]]
    predictions = ["Unanswerable.", "", "Paris", "unanswerable", ""]
    exact, f1 = metrics.question_answering(predictions, references)
    assert exact.column == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert f1.column == [1.0, 1.0, 0.0, 0.0, 0.0]


# -- classification and likelihoods


@pytest.mark.filterwarnings("ignore:A single label")
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40)
)
def test_classification_scores_equal_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    predicted, labels = [p for p, _ in pairs], [t for _, t in pairs]
    accuracy, mcc, positive, f1 = metrics.classification(
        predicted, labels, "rule", names="ez", positive="b"
    )
    assert accuracy.value() == pytest.approx(accuracy_score(labels, predicted))
    assert mcc.value() == pytest.approx(matthews_corrcoef(labels, predicted), abs=1e-12)
    assert f1.value() == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-12)
    own = f1_score([x == "b" for x in labels], [x == "b" for x in predicted], zero_division=0)
    assert (positive.name, positive.value()) == ("f1", pytest.approx(own))
    assert "of the class 'b'" in positive.signature
    assert [m.name for m in metrics.classification(predicted, labels, "rule")] == [
        "accuracy",
        "mcc",
        "f1_macro",
    ]


def test_a_label_outside_the_choices_counts_as_wrong() -> None:
    accuracy, *_ = metrics.classification(["a", "b"], ["a", "unseen"], "rule")
    assert accuracy.column == [1.0, 0.0]


def test_perplexity_and_bits_per_byte_of_a_uniform_model() -> None:
    tokens, size = np.array([4, 4, 2]), np.array([8, 8, 4])
    nats = tokens * np.log(256)
    assert metrics.perplexity(nats, tokens, "").value() == pytest.approx(256)
    assert metrics.bits_per_byte(nats, size, "").value() == pytest.approx(4.0)  # 8 bits for 2 bytes
    score = metrics.bits_per_byte(nats, size, "what").score(200, 0.95, 0)
    assert list(score) == ["value", "low", "high", "n", "signature"]
    assert score["low"] == pytest.approx(4.0) == score["high"]
    assert score["n"] == 3


def test_the_perplexity_of_a_hopeless_model_is_a_number() -> None:
    assert np.isfinite(
        metrics.perplexity(np.array([1e6]), np.array([1]), "").score(100, 0.95, 0)["value"]
    )

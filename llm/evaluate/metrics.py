"""Scores of predictions against references: BLEU, ROUGE, exact match, F1, accuracy, Matthews
correlation, likelihoods.

A `Measure` is a matrix of per-example statistics and the function that turns their sum into the
corpus score; from it come the value, the bootstrap interval and, where an example has a score of
its own, the column of the predictions file. Every score lies between 0 and 1, except BLEU (0-100,
sacrebleu's scale), Matthews correlation (-1-1), perplexity, bits per byte and mean length.

Degenerate input is defined: an empty prediction scores 0 (1 for EM and F1 where there is no answer
    to give); an empty
list of references reads as one empty reference; a label outside the choices counts as wrong.
`counted` tells how often each occurs.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np

from llm.evaluate.bootstrap import Reduce, bootstrap
from llm.text.sentences import RougeTokenizer, sentences, words, writing

ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BLEU_ORDER = 4
UNANSWERABLE = (
    "unanswerable"  # what `llm.tasks.question_answering` answers where the text has no answer
)


@dataclass(frozen=True)
class Measure:
    """One metric over a test set of n examples.

    statistics: (n, k), additive over examples. reduce: corpus scores of sums of them, see
        `intervals.Reduce`.
    column: each example's own score, where it has one.
    """

    name: str
    signature: str
    statistics: np.ndarray
    reduce: Reduce
    column: list[float] | None = None

    def value(self) -> float:
        """The score of the whole test set."""
        sums = self.statistics.astype(np.float64).sum(axis=0, keepdims=True)
        return float(self.reduce(sums, len(self.statistics))[0])

    def score(self, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
        """`{value, low, high, n, signature}`; `low` and `high` are a bootstrap percentile interval."""
        low, high = bootstrap(self.statistics, self.reduce, resamples, confidence, seed)
        signature = f"{self.signature}|bootstrap:{resamples}|confidence:{confidence}|seed:{seed}"
        return {
            "value": self.value(), "low": low, "high": high, "n": len(self.statistics), "signature": signature,
        }  # fmt: skip


def mean(name: str, signature: str, values: Sequence[float]) -> Measure:
    """The mean of per-example scores."""
    column = [float(value) for value in values]
    return Measure(
        name, signature, np.array(column)[:, None], lambda sums, n: sums[:, 0] / n, column
    )


def _present(references: Sequence[Sequence[str]]) -> list[list[str]]:
    return [list(texts) or [""] for texts in references]


def counted(predictions: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Measure]:
    """Shares of examples that something is wrong with: an empty prediction, no reference, a label
    among no choices.
    """
    scale = "|scale:0-1"
    empty = [float(not prediction.strip()) for prediction in predictions]
    bare = [float(not any(text.strip() for text in row["references"])) for row in rows]
    found = [
        mean("empty", "share of predictions without text" + scale, empty),
        mean(
            "no_reference",
            "share of examples without a reference, or with an empty one" + scale,
            bare,
        ),
    ]
    if rows and "choices" in rows[0]:
        unseen = [float(row["label"] not in row["choices"]) for row in rows]
        found.append(
            mean(
                "unseen_label",
                "share of labels that are none of the choices: never right" + scale,
                unseen,
            )
        )
    return found


# -- text against text


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> Measure:
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu (Post 2018), all its defaults; the column is
    sentence BLEU.

    Where the references are in a script without spaces, its tokenizer is that for Chinese, or
    characters.

    The statistics are sacrebleu's: lengths of prediction and closest reference, and for 1- to
    4-grams matches and totals; `bleu_of_sums` is its formula for many sums at once.
    """
    from sacrebleu.metrics import BLEU

    references = _present(references)
    tokenizer = {"chinese": "zh", "characters": "char"}.get(
        writing(references)
    )  # None: sacrebleu's default
    sentence, corpus = BLEU(effective_order=True, tokenize=tokenizer), BLEU(tokenize=tokenizer)
    rows, column = [], []
    for prediction, texts in zip(predictions, references, strict=True):
        score = sentence.sentence_score(prediction, texts)
        rows.append([score.sys_len, score.ref_len, *score.counts, *score.totals])
        column.append(float(score.score))
    # sacrebleu knows the number of references, a part of its signature, once it has seen a corpus.
    most = max(map(len, references))
    streams = [
        [texts[i] if i < len(texts) else None for texts in references[:1]] for i in range(most)
    ]
    corpus.corpus_score(list(predictions[:1]), streams)  # type: ignore[arg-type]
    counts = set(map(len, references))
    corpus.num_refs = counts.pop() if len(counts) == 1 else -1
    return Measure(
        "bleu", f"{corpus.get_signature()}|scale:0-100", np.array(rows), bleu_of_sums, column
    )


def bleu_of_sums(sums: np.ndarray, n: int) -> np.ndarray:
    """BLEU (0-100) of summed statistics (resamples, 2 + 2 · 4), with sacrebleu's `exp` smoothing
    (NIST's).

    An order without a match counts as 1 / (2^i · total), i counting such orders; without any match,
    or without a single n-gram of some order, the score is 0.
    """
    predicted, reference = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + BLEU_ORDER], sums[:, 2 + BLEU_ORDER :]
    halvings = np.cumsum(matches == 0, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precisions = np.where(matches > 0, matches, 0.5**halvings) / totals
        penalty = np.where(predicted < reference, np.exp(1.0 - reference / predicted), 1.0)
        scores = 100.0 * penalty * np.exp(np.log(precisions).mean(axis=1))
    return np.where(matches.any(axis=1) & totals.all(axis=1), scores, 0.0)


def rouge(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[Measure]:
    """ROUGE F-measures (Lin 2004) by rouge-score with Porter stemming; the best reference counts.

    Both sides are cut into sentences, one a line, by `text.sentences`: rougeLsum compares sentence
    by sentence, and reads a text without line breaks as one sentence. The others ignore line
    breaks. The references decide on the
    tokenizer: rouge-score's own, which knows a-z only, or for other scripts `text.RougeTokenizer`.
    """
    from rouge_score.rouge_scorer import RougeScorer

    tokenizer = None if writing(references) == "latin" else RougeTokenizer()
    scorer = RougeScorer(list(ROUGE), use_stemmer=True, tokenizer=tokenizer)
    columns: dict[str, list[float]] = {name: [] for name in ROUGE}
    for prediction, texts in zip(predictions, _present(references), strict=True):
        best = scorer.score_multi([by_line(text) for text in texts], by_line(prediction))
        for name in ROUGE:
            columns[name].append(float(best[name].fmeasure))
    cut = f"tokens:{tokenizer.signature}" if tokenizer else "stemmer:porter"
    signature = f"rouge-score:{version('rouge-score')}|{cut}|fmeasure|best reference|scale:0-1"
    ends = (
        "line breaks, [。！？], and [.!?] before a capital"
        if tokenizer
        else "line breaks and [.!?] before a capital"
    )
    rule = {"rougeLsum": f"|sentences:{ends}"}
    return [mean(name, signature + rule.get(name, ""), column) for name, column in columns.items()]


def by_line(text: str) -> str:
    """The text with one sentence a line."""
    return "\n".join(sentences(text, lines=True))


def mean_length(predictions: Sequence[str]) -> Measure:
    """Words in a prediction, on average: far shorter or longer predictions than references explain
    odd scores.
    """
    return mean(
        "mean_length", "words of \\w+ in a prediction", [len(words(text)) for text in predictions]
    )


# -- question answering: the rules of SQuAD's evaluate-v1.1.py and evaluate-v2.0.py
#   ----------------------------------

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower-case, then drop ASCII punctuation, then articles, then extra white space, in the
    official order.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """1 where both normalise to the same text."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def token_f1(prediction: str, reference: str) -> float:
    """F1 of the bags of normalised words; where either is empty, whether both are
    (evaluate-v2.0.py).
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((collections.Counter(predicted) & collections.Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def question_answering(
    predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> list[Measure]:
    """Exact match and F1, each the maximum over the references.

    `unanswerable`, as a prediction or a reference, is the empty answer of SQuAD 2.0. As in
    evaluate-v2.0.py, references that normalise to nothing do not count unless there is no other.
    """
    matches, overlaps = [], []
    for prediction, texts in zip(predictions, references, strict=True):
        answers = [text for text in map(_no_answer, texts) if normalize_answer(text)] or [""]
        given = _no_answer(prediction)
        matches.append(max(exact_match(given, answer) for answer in answers))
        overlaps.append(max(token_f1(given, answer) for answer in answers))
    signature = (
        "squad:v2.0 normalisation|best reference|'unanswerable' is the empty answer|scale:0-1"
    )
    return [mean("exact_match", signature, matches), mean("f1", signature, overlaps)]


def has_answer(references: Iterable[str]) -> bool:
    """Return whether a question has an answer: a reference other than "" and `unanswerable`."""
    return any(normalize_answer(_no_answer(text)) for text in references)


def _no_answer(text: str) -> str:
    return "" if normalize_answer(text) == UNANSWERABLE else text


# -- classification


def classification(
    predicted: Sequence[str],
    labels: Sequence[str],
    rule: str,
    names: Iterable[str] = (),
    positive: str | None = None,
) -> list[Measure]:
    """Accuracy, Matthews correlation, F1 of the positive class and macro-averaged F1 of predicted
    class names.

    rule: how a prediction was made, for the signature.
    names: classes beside those that are predicted or true, so that two models' statistics have the
        same columns.
    positive: the class that F1 is of, such as GLUE's for MRPC and QQP; None: there is none, and no
        such F1.
    """
    correct = np.array([float(a == b) for a, b in zip(predicted, labels, strict=True)])
    known = {*names, *predicted, *labels} | ({positive} if positive is not None else set())
    index = {name: i for i, name in enumerate(sorted(known))}
    one_hot = np.eye(len(index))
    true, given = (
        one_hot[[index[name] for name in labels]],
        one_hot[[index[name] for name in predicted]],
    )
    statistics = np.concatenate([correct[:, None], true, given], axis=1)
    per_class = np.concatenate([true * given, true, given], axis=1)
    classes = len(index)
    f1 = []
    if positive is not None:
        own = per_class[:, index[positive] :: classes]
        f1 = [
            Measure(
                "f1",
                f"of the class {positive!r}|{rule}|scale:0-1",
                own,
                partial(f1_macro_of_sums, classes=1),
            )
        ]
    return [
        mean("accuracy", f"{rule}|scale:0-1", correct.tolist()),
        Measure("mcc", f"{rule}|scale:-1-1", statistics, partial(mcc_of_sums, classes=classes)),
        *f1,
        Measure(
            "f1_macro",
            f"mean over classes that are true or predicted|{rule}|scale:0-1",
            per_class,
            partial(f1_macro_of_sums, classes=classes),
        ),
    ]


def mcc_of_sums(sums: np.ndarray, n: int, classes: int) -> np.ndarray:
    """Matthews correlation for any number of classes (Gorodkin 2004), as scikit-learn's
    `matthews_corrcoef`.

    sums: (resamples, 1 + 2 · classes): right predictions, then how often each class is true, then
        predicted.
    0 where truth or prediction has one class only.
    """
    true, predicted = sums[:, 1 : 1 + classes], sums[:, 1 + classes :]
    covariance = sums[:, 0] * n - (true * predicted).sum(axis=1)
    spread = (n**2 - (predicted**2).sum(axis=1)) * (n**2 - (true**2).sum(axis=1))
    return np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0)


def f1_macro_of_sums(sums: np.ndarray, n: int, classes: int) -> np.ndarray:
    """Mean of the classes' F1, as scikit-learn's `f1_score(average="macro")`; a class that does not
    occur is left out.

    sums: (resamples, 3 · classes): for each class how often it is right, true and predicted.
    """
    right, true, predicted = (
        sums[:, :classes],
        sums[:, classes : 2 * classes],
        sums[:, 2 * classes :],
    )
    occurs = true + predicted
    scores = np.where(occurs > 0, 2 * right / np.where(occurs > 0, occurs, 1.0), 0.0)
    return np.asarray(scores.sum(axis=1) / np.maximum((occurs > 0).sum(axis=1), 1))


# -- likelihoods


def loss(nats: np.ndarray, tokens: np.ndarray, signature: str) -> Measure:
    """Mean negative log-likelihood (nats) per token; one row a window."""
    return Measure(
        "loss", signature, np.stack([nats, tokens], axis=1), lambda sums, n: sums[:, 0] / sums[:, 1]
    )


def perplexity(nats: np.ndarray, tokens: np.ndarray, signature: str) -> Measure:
    """exp of the mean negative log-likelihood per token; one row a window."""
    return Measure("perplexity", signature, np.stack([nats, tokens], axis=1), perplexity_of_sums)


def perplexity_of_sums(sums: np.ndarray, n: int) -> np.ndarray:
    """exp(nats / tokens), cut off at the largest float: a hopeless model has a score like any
    other.
    """
    with np.errstate(over="ignore"):
        return np.minimum(np.exp(sums[:, 0] / sums[:, 1]), np.finfo(np.float64).max)


def bits_per_byte(nats: np.ndarray, size: np.ndarray, signature: str) -> Measure:
    """Bits for a byte of text; one row a window or document with its code length (nats) and size
    (bytes).
    """
    statistics = np.stack([nats / np.log(2.0), size], axis=1)
    return Measure("bits_per_byte", signature, statistics, lambda sums, n: sums[:, 0] / sums[:, 1])

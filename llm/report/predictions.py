"""The predictions in the report: score distributions, weak spots, best and worst examples."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from llm.evaluate import metric_names
from llm.report import scores
from llm.runtime.parquet import readable
from llm.tasks.base import key

PREDICTIONS = Path("metrics/predictions")
SHOWN = 3  # examples each of the best, the worst and a random draw
LABELS = 16  # most labels in a figure
BINS = 5  # of prompt length, with equally many prompts each
Columns = dict[str, list[Any]]


def collect(clip: Callable[[str], str], evaluate: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return task → the data of its section.

    Tasks without predictions, or without a score for each example, are left out.

    Args:
        clip: shortens a prompt.
        evaluate: content of metrics/evaluate.json.
    """
    sections = {}
    for task, columns in by_task():
        own = columns["finetuned"]
        metric = metric_names.headline(own)
        if metric is None or not own["id"]:
            continue
        lengths = np.array([len(prompt.split()) for prompt in own["prompt"]])
        edges = np.unique(np.quantile(lengths, np.linspace(0, 1, BINS + 1)).round().astype(int))
        ranked = ranking(own, metric)
        chosen = sorted(range(len(ranked)), key=lambda i: key("shown", own["id"][i]))[:SHOWN]
        sections[task] = {
            "metric": metric,
            "scores": {
                model: [float(x) for x in table[metric]] for model, table in columns.items()
            },
            "by_length": {
                model: by_length(lengths, np.array(table[metric], float), edges)
                for model, table in columns.items()
                if table["id"] == own["id"]
            },
            "by_label": by_label(columns, metric) if metric == "accuracy" else {},
            "best": [example(own, i, metric, clip) for i in ranked[:SHOWN]],
            "worst": [example(own, i, metric, clip) for i in ranked[::-1][:SHOWN]],
            "random": [example(own, i, metric, clip) for i in chosen],
            "variants": variants(evaluate, task, metric, own),
        }
    return sections


def by_task() -> Iterator[tuple[str, dict[str, Columns]]]:
    """Yield each task, and the predictions of `finetuned` and of `base` if there are some."""
    for path in sorted(PREDICTIONS.glob("finetuned-*.parquet")):
        task = path.stem.removeprefix("finetuned-")
        base = path.with_name(f"base-{task}.parquet")
        yield task, {"finetuned": read(path)} | ({"base": read(base)} if base.is_file() else {})


def tests(model: str) -> tuple[str, int]:
    """Return digest and number of a model's test examples, by task, id and references.

    Scores are comparable only on the same examples.
    """
    digest, count = hashlib.sha256(), 0
    for path in sorted(PREDICTIONS.glob(f"{model}-*.parquet")):
        columns = read(path)
        if "references" not in columns:  # windows of text
            continue
        examples = sorted(zip(columns["id"], columns["references"], strict=True))
        digest.update(json.dumps([path.stem, examples]).encode())
        count += len(examples)
    return digest.hexdigest(), count


def read(path: Path) -> Columns:
    """Read the columns of a predictions file. Raises UserError if it is corrupt."""
    import pyarrow.parquet as pq

    with readable(path, "Delete it and run `dvc repro`."):
        columns: Columns = pq.read_table(path).to_pydict()
    return columns


def ranking(columns: Columns, metric: str) -> list[int]:
    """Return positions from the best example to the worst.

    Ties of right or wrong choices are broken by the model's confidence.
    """

    def quality(i: int) -> tuple[float, float, int]:
        score = float(columns[metric][i])
        sure = 0.0
        if "log_likelihoods" in columns:
            ordered = sorted(columns["log_likelihoods"][i])
            sure = ordered[-1] - ordered[-2] if len(ordered) > 1 else 0.0
        return -score, -sure if score else sure, i

    return sorted(range(len(columns["id"])), key=quality)


def example(columns: Columns, i: int, metric: str, clip: Callable[[str], str]) -> dict[str, Any]:
    """Return one prediction and its reference, in pieces (text, whether both have it)."""
    prediction = str(columns["prediction"][i])
    references = [str(text) for text in columns["references"][i] or [""]]
    # Show the reference that has most in common with the prediction.
    marked = max(
        (overlap(prediction, text) for text in references), key=lambda pair: shared(pair[0])
    )
    return {
        "prompt": clip(columns["prompt"][i]),
        "prediction": marked[0],
        "reference": marked[1],
        "score": float(columns[metric][i]),
    }


Pieces = list[tuple[str, bool]]


def overlap(prediction: str, reference: str) -> tuple[Pieces, Pieces]:
    """Return both texts in pieces; true marks words that the other has too, in the same order.

    Case is ignored.
    """
    texts = [re.findall(r"\w+|\W+", text) for text in (prediction, reference)]
    words = [
        [(position, token.lower()) for position, token in enumerate(t) if re.match(r"\w", token)]
        for t in texts
    ]
    a, b = ([word for _, word in side] for side in words)
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    common: tuple[set[int], set[int]] = (set(), set())
    for block in matcher.get_matching_blocks():
        for offset in range(block.size):
            common[0].add(words[0][block.a + offset][0])
            common[1].add(words[1][block.b + offset][0])
    return _joined(texts[0], common[0]), _joined(texts[1], common[1])


def _joined(tokens: list[str], common: set[int]) -> Pieces:
    pieces: Pieces = []
    for position, token in enumerate(tokens):
        # Text between two marked words is marked too, so that phrases stay whole.
        inside = position in common or (position - 1 in common and position + 1 in common)
        if pieces and pieces[-1][1] == inside:
            pieces[-1] = (pieces[-1][0] + token, inside)
        else:
            pieces.append((token, inside))
    return pieces


def shared(pieces: Pieces) -> int:
    """Return the number of characters that both texts have."""
    return sum(len(text) for text, common in pieces if common)


def by_length(lengths: np.ndarray, values: np.ndarray, edges: np.ndarray) -> list[dict[str, float]]:
    """Return mean score and standard error by prompt length: bins {low, high, n, mean, error}.

    Args:
        lengths: words of each prompt, (examples,).
        values: score of each example, (examples,).
        edges: bin borders in words, (bins + 1,).
    """
    bins = []
    for j in range(max(1, len(edges) - 1)):
        low, high = edges[j], edges[min(j + 1, len(edges) - 1)]
        last = j + 2 >= len(edges)
        scores_in_bin = values[(lengths >= low) & ((lengths <= high) if last else (lengths < high))]
        if len(scores_in_bin):
            error = (
                float(scores_in_bin.std(ddof=1) / np.sqrt(len(scores_in_bin)))
                if len(scores_in_bin) > 1
                else 0.0
            )
            bins.append(
                {
                    "low": int(low),
                    "high": int(high),
                    "n": len(scores_in_bin),
                    "mean": float(scores_in_bin.mean()),
                    "error": error,
                }
            )
    return bins


def by_label(columns: dict[str, Columns], metric: str) -> dict[str, dict[str, float]]:
    """Return label → model → accuracy on that label, for the most common labels."""
    own = columns["finetuned"]
    labels = [texts[0] if texts else "" for texts in own["references"]]
    common = sorted(set(labels), key=lambda label: (-labels.count(label), label))[:LABELS]
    accuracies: dict[str, dict[str, float]] = {label: {} for label in common}
    for model, table in columns.items():
        if table["id"] == own["id"]:
            for label in common:
                right = [
                    float(x) for x, true in zip(table[metric], labels, strict=True) if true == label
                ]
                accuracies[label][model] = sum(right) / len(right)
    return accuracies


def variants(
    evaluate: dict[str, Any], task: str, metric: str, own: Columns
) -> list[dict[str, Any]]:
    """Return scores with other decoding, each beside the usual one on the same examples.

    Each is {name, how, n, value, low, high, usual}.
    """
    rows = []
    for model in evaluate:
        score = (
            scores.score(evaluate, model, task, metric) if model.startswith("variant:") else None
        )
        if score:
            same = [float(x) for x in own[metric][: score["n"]]]
            how = re.search(r"\|((?:greedy|beam search|sampled)[^|]*)", str(score["signature"]))
            rows.append(
                {
                    "name": model.removeprefix("variant:"),
                    "how": how[1] if how else "",
                    "n": score["n"],
                    "value": score["value"],
                    "low": score["low"],
                    "high": score["high"],
                    "usual": sum(same) / len(same),
                }
            )
    return rows

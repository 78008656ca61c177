"""Questions about parameters and results, whose answers are exact spans of the documentation."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from typing import Any

from llm.sources.docs.dedup import words
from llm.sources.docs.docstrings import Field
from llm.sources.docs.prose import first_characters, sentences
from llm.sources.docs.scan import Corpus, Entry
from llm.sources.docs.split import Row, across_modules, stamp, task_row

CONTEXT_CHARACTERS = 900
HEAD_CHARACTERS = 250
LINE_CHARACTERS = 420
ANSWER_CHARACTERS = (12, 120)
MAX_NAME = 10  # questions about one name over all modules
# Largest F1 between two answers about one name; above it, one answer gives away the other.
MAX_OVERLAP = 0.25

QUESTIONS = {
    "Parameters": (
        "What is the parameter `{name}`?",
        "In `{owner}`, what is `{name}`?",
        "What is the meaning of the parameter `{name}`?",
        "How is the parameter `{name}` described?",
        "In `{owner}`, what is the argument `{name}`?",
    ),
    "Switches": (
        "What is the effect of the parameter `{name}`?",
        "In `{owner}`, what is controlled by `{name}`?",
        "What is the effect of `{name}`?",
        "In `{owner}`, what is the effect of `{name}`?",
    ),
    "Attributes": (
        "What is the attribute `{name}`?",
        "In `{owner}`, what is held by the attribute `{name}`?",
        "What is stored in `{name}`?",
    ),
    "Returns": (
        "What value is returned by `{owner}`?",
        "What is returned by `{owner}`?",
        "What is the result of `{owner}`?",
    ),
    "Results": (
        "What is the returned `{name}`?",
        "What does `{owner}` return as `{name}`?",
        "Of what `{owner}` returns, what is `{name}`?",
    ),
    "Raises": (
        "When does `{owner}` raise `{name}`?",
        "When is `{name}` raised?",
        "What makes `{owner}` raise `{name}`?",
    ),
}


def question_answering(corpus: Corpus, dropped: Counter[str], kept: Row) -> list[Row]:
    """Return SQuAD-like records; the answers are exact spans of the context.

    An answer must not follow from the name asked about: it is kept only if it differs from the
    name's own words (`max_iter`: "Maximum number …" stays, `batch_size`: "Size of the batch" goes)
    and from the name's other answers. The figure that checks it, the F1 of answering held-out
    modules by name alone, is put into `kept`."""
    rows: list[Row] = []
    names: list[tuple[str, str]] = []
    answered: set[str] = set()
    by_name: defaultdict[tuple[str, str], list[Counter[str]]] = defaultdict(list)
    for entry in sorted(corpus.entries, key=lambda entry: stamp(entry.id)):
        for context, items in contexts(entry):
            for item in items:
                if ambiguous(item, entry):
                    dropped["question_answering: name not unique"] += 1
                    continue
                answer = answer_of(item, context)
                asked = (item.kind, (item.name or entry.name.rsplit(".", 1)[-1]).strip("_"))
                tokens, earlier = words(answer), by_name[asked]
                counted = counts(tokens)
                if not answer:
                    dropped["question_answering: no short answer"] += 1
                elif " ".join(tokens) in answered:
                    dropped["question_answering: answer repeated"] += 1
                elif len(earlier) >= MAX_NAME or any(
                    f1(counted, other) > MAX_OVERLAP
                    for other in [*earlier, counts(name_words(asked[1]))]
                ):
                    dropped["question_answering: answer follows from the name"] += 1
                else:
                    answered.add(" ".join(tokens))
                    earlier.append(counted)
                    names.append(asked)
                    position = f"{entry.id}:{item.name or 'return'}"
                    question = phrase(item, entry, answer, position)
                    texts = {"context": context, "question": question, "answers": [answer]}
                    rows.append(task_row(position, entry.module, **texts))
    unique = {row["id"]: (row, name) for row, name in zip(rows, names, strict=True)}
    dropped["question_answering: same field twice"] += len(rows) - len(unique)
    rows = [row for row, _ in unique.values()]
    rows = across_modules(rows, lambda row: row["context"], "question_answering", dropped)
    kept["closed_book_f1"] = round(closed_book_f1(rows, [unique[row["id"]][1] for row in rows]), 4)
    return rows


def ambiguous(item: Field, entry: Entry) -> bool:
    """Return whether several fields would answer the question, or the name lists several."""
    same = [f for f in entry.doc.fields if (f.kind, f.name) == (item.kind, item.name)]
    return "," in item.name or len(same) > 1


def contexts(entry: Entry) -> list[tuple[str, list[Field]]]:
    """Return excerpts of up to `CONTEXT_CHARACTERS`: name, summary and at least two fields."""
    summary = first_characters([entry.doc.summary], HEAD_CHARACTERS)
    head = f"{owner(entry)}: {summary}" if summary else f"{owner(entry)}."
    out: list[tuple[str, list[Field]]] = []
    lines: list[str] = []
    items: list[Field] = []
    for item in [*entry.doc.fields, None]:
        line = first_characters([item.line(types=False)], LINE_CHARACTERS) if item else ""
        full = len(head) + sum(len(part) + 1 for part in lines) + len(line) + 1 > CONTEXT_CHARACTERS
        if (item is None or full) and lines:
            if len(items) >= 2:
                out.append(("\n".join([head, *lines]), items))
            lines, items = [], []
        if item and line:
            lines.append(line)
            items.append(item)
    return out


def answer_of(item: Field, context: str) -> str:
    """Return the description's first sentence or clauses; "" if neither is short enough."""
    low, high = ANSWER_CHARACTERS
    text = (sentences(item.text) or [""])[0]
    text = re.sub(r"[.,;]?\s*\((?:default|optional)[^()]*\)[. ]*$", "", text, flags=re.I)
    text = text.rstrip(". ")
    if len(text) > high:
        ends = re.finditer(r"[,;:] | \(| which | that is | where | so that | i\.e\.", text)
        cuts = [match.start() for match in ends]
        text = text[: max((cut for cut in cuts if 30 <= cut <= high), default=0)]
    balanced = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}"))
    balanced = balanced and text.count('"') % 2 == 0
    long_enough = low <= len(text) and len(text.split()) >= 3
    return text if long_enough and balanced and text in context else ""


def phrase(item: Field, entry: Entry, answer: str, position: str) -> str:
    """Return one of several phrasings of the question, chosen by a hash of its position."""
    kind = "Results" if item.kind == "Returns" and item.name else item.kind
    switch = r"(If|Whether|When|Controls?|Determines?|Enables?|Set|Use|Specif)"
    if kind == "Parameters" and re.match(switch, answer):
        kind = "Switches"
    choices = QUESTIONS[kind]
    question = choices[zlib.crc32(position.encode()) % len(choices)]
    return question.format(name=item.name, owner=owner(entry))


def owner(entry: Entry) -> str:
    """Return the last two parts of a name, which identify a method or function."""
    return ".".join(entry.name.split(".")[-2:])


def counts(words: list[str]) -> Counter[str]:
    """Return how often each word occurs, without articles."""
    return Counter(word for word in words if word not in ("a", "an", "the"))


def f1(left: Counter[str], right: Counter[str]) -> float:
    """Return SQuAD's F1 of two answers' `counts`."""
    common = (left & right).total()
    return 2 * common / (left.total() + right.total()) if common else 0.0


def closed_book_f1(rows: list[Row], names: list[tuple[str, str]]) -> float:
    """Return the mean F1, on a tenth of the modules, of answers given without the context.

    It is that of the better of two strategies. One repeats the name. The other gives the most
    typical answer (with the largest mean F1 to the others) that the other modules have for the same
    name, or, if the name is new, for the same kind of question."""
    train: defaultdict[Any, list[Counter[str]]] = defaultdict(list)
    held: list[tuple[tuple[str, str], Counter[str]]] = []
    for row, name in zip(rows, names, strict=True):
        tokens = counts(words(row["answers"][0]))
        if zlib.crc32(row["group"].encode()) % 10 == 0:
            held.append((name, tokens))
        else:
            train[name].append(tokens)
            if len(train[name[0]]) < 300:
                train[name[0]].append(tokens)
    typical = {
        name: max(answers, key=lambda answer: sum(f1(answer, other) for other in answers))
        for name, answers in train.items()
    }
    remembered = sum(
        f1(typical.get(name) or typical.get(name[0]) or Counter(), tokens) for name, tokens in held
    )
    repeated = sum(f1(counts(name_words(name[1])), tokens) for name, tokens in held)
    return max(remembered, repeated) / len(held) if held else 0.0


def name_words(name: str) -> list[str]:
    """Return the words inside a name: `n_samples` and `nSamples` are n, samples."""
    return words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")))

"""Three real tasks from documentation: summarise it, answer a question about it, tell which library it documents."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from llm.data.docs_dedup import near_duplicates, words
from llm.data.docs_parse import Field
from llm.data.docs_scan import Corpus, Entry
from llm.data.docs_text import STOPWORDS, sentences

Row = dict[str, Any]
LONG_LINE = 60  # characters from which a line must not occur in two modules
NEAR = 0.6  # estimated Jaccard similarity from which texts of two modules count as the same

TEST_SHARE, VALIDATION_SHARE = 0.08, 0.03  # of the modules


def split_of(module: str) -> str:
    """The side of a module: the same in all tasks, so that pretraining can leave out what the tests are made of."""
    point = int.from_bytes(hashlib.blake2b(module.encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if point < TEST_SHARE else "validation" if point < TEST_SHARE + VALIDATION_SHARE else "train"


# -- summarization ----------------------------------------------------------------------------------------------------

SUMMARY_CHARACTERS = (20, 150)
DOCUMENT_CHARACTERS = (200, 1200)
MIN_SUPPORT = 0.5  # of the summary's content words must occur in the document, else it cannot be written from it


def summarization(found: Corpus, dropped: Counter[str], kept: Row) -> list[Row]:
    """The body of a docstring → its summary line, where the body says enough to write the line from it."""
    rows: list[Row] = []
    for entry in found.entries:
        document = first_characters(
            [*entry.doc.body, *entry.doc.notes, *(item.line() for item in entry.doc.fields)], DOCUMENT_CHARACTERS[1]
        )
        if len(document) < DOCUMENT_CHARACTERS[0]:
            dropped["summarization: document under 200 characters"] += 1
        elif reason := poor_summary(entry.doc.summary, document):
            dropped[f"summarization: {reason}"] += 1
        else:
            rows.append(
                {
                    "id": stamp(entry.id),
                    "document": document,
                    "summary": entry.doc.summary,
                    "group": entry.module,
                    "split": split_of(entry.module),
                }
            )
    return across_modules(rows, lambda row: row["document"], "summarization", dropped)


def poor_summary(summary: str, document: str) -> str:
    """Why a line is not a one-sentence summary of the document, or ""."""
    low, high = SUMMARY_CHARACTERS
    if not low <= len(summary) <= high or len(summary.split()) < 4:
        return "summary too short or too long"
    if not re.match(r"[A-Z]", summary) or not summary.endswith(".") or len(sentences(summary)) != 1:
        return "summary is not one sentence"
    if "\n" in summary or ": " in summary:
        return "summary is a heading or a list"
    if " ".join(words(summary)) in " ".join(words(document)):
        return "summary stands in the document"
    stems = [word[:5] for word in words(summary) if word not in STOPWORDS and len(word) > 2]
    known = {word[:5] for word in words(document)}
    if len(stems) < 2 or sum(stem in known for stem in stems) < MIN_SUPPORT * len(stems):
        return "summary says what the document does not"
    return ""


def first_characters(parts: list[str], limit: int) -> str:
    """Whole paragraphs, then whole sentences, up to `limit` characters, one paragraph a line."""
    text = ""
    for part in parts:
        if len(text) + 1 + len(part) <= limit:
            text = f"{text}\n{part}".strip()
            continue
        for sentence in sentences(part):
            if len(text) + 1 + len(sentence) > limit or not sentence.endswith((".", "!", "?")):
                break
            text += ("\n" if sentence is part or part.startswith(sentence) else " ") + sentence
        break
    return text.strip()


# -- question answering -----------------------------------------------------------------------------------------------

CONTEXT_CHARACTERS = 900
HEAD_CHARACTERS = 250
LINE_CHARACTERS = 420
ANSWER_CHARACTERS = (12, 120)
MAX_NAME = 10  # questions about one name over all modules
MAX_OVERLAP = 0.25  # F1 between two answers to the same name: above it, knowing one answers the other

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


def question_answering(found: Corpus, dropped: Counter[str], kept: Row) -> list[Row]:
    """SQuAD-like: what a parameter is, what a function returns; answers are exact spans of the context.

    An answer must not follow from the name asked about: it is kept only if it differs from the name's own words
    (`max_iter`: "Maximum number …" stays, `batch_size`: "Size of the batch" goes) and from the name's other answers.
    The figure that checks it, the F1 of answering held-out modules by name alone, is put into `kept`.
    """
    rows: list[Row] = []
    names: list[tuple[str, str]] = []
    answered: set[str] = set()
    by_name: defaultdict[tuple[str, str], list[list[str]]] = defaultdict(list)
    for entry in sorted(found.entries, key=lambda entry: stamp(entry.id)):
        for context, items in contexts(entry):
            for item in items:
                if ambiguous(item, entry):
                    dropped["question_answering: name not unique"] += 1
                    continue
                answer = answer_of(item, context)
                asked = (item.kind, (item.name or entry.name.rsplit(".", 1)[-1]).strip("_"))
                tokens = words(answer)
                if not answer:
                    dropped["question_answering: no short answer"] += 1
                elif " ".join(tokens) in answered:
                    dropped["question_answering: answer repeated"] += 1
                elif len(by_name[asked]) >= MAX_NAME or any(
                    f1(tokens, other) > MAX_OVERLAP for other in [*by_name[asked], name_words(asked[1])]
                ):
                    dropped["question_answering: answer follows from the name"] += 1
                else:
                    answered.add(" ".join(tokens))
                    by_name[asked].append(tokens)
                    names.append(asked)
                    place = f"{entry.id}:{item.name or 'return'}"
                    question = phrase(item, entry, answer, place)
                    rows.append(
                        {
                            "id": stamp(place),
                            "context": context,
                            "question": question,
                            "answers": [answer],
                            "group": entry.module,
                            "split": split_of(entry.module),
                        }
                    )
    unique = {row["id"]: (row, name) for row, name in zip(rows, names, strict=True)}
    dropped["question_answering: same field twice"] += len(rows) - len(unique)
    rows = across_modules(
        [row for row, _ in unique.values()], lambda row: row["context"], "question_answering", dropped
    )
    kept["closed_book_f1"] = round(closed_book_f1(rows, [unique[row["id"]][1] for row in rows]), 4)
    return rows


def ambiguous(item: Field, entry: Entry) -> bool:
    """Whether several fields of an entry would answer the question, or its name is a list of names."""
    return (
        "," in item.name or sum(other.kind == item.kind and other.name == item.name for other in entry.doc.fields) > 1
    )


def contexts(entry: Entry) -> list[tuple[str, list[Field]]]:
    """Excerpts of at most `CONTEXT_CHARACTERS`: the name and summary, then at least two described fields."""
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
    """The description's first sentence, or its first clauses where it is long; "" where neither is short enough."""
    low, high = ANSWER_CHARACTERS
    text = (sentences(item.text) or [""])[0]
    text = re.sub(r"[.,;]?\s*\((?:default|optional)[^()]*\)[. ]*$", "", text, flags=re.I).rstrip(". ")
    if len(text) > high:
        cuts = [match.start() for match in re.finditer(r"[,;:] | \(| which | that is | where | so that | i\.e\.", text)]
        text = text[: max((cut for cut in cuts if 30 <= cut <= high), default=0)]
    balanced = all(text.count(a) == text.count(b) for a, b in ("()", "[]", "{}")) and text.count('"') % 2 == 0
    return text if low <= len(text) and len(text.split()) >= 3 and balanced and text in context else ""


def phrase(item: Field, entry: Entry, answer: str, place: str) -> str:
    """One of several phrasings of the question, chosen by a hash of its place."""
    kind = "Results" if item.kind == "Returns" and item.name else item.kind
    if kind == "Parameters" and re.match(r"(If|Whether|When|Controls?|Determines?|Enables?|Set|Use|Specif)", answer):
        kind = "Switches"
    choices = QUESTIONS[kind]
    return choices[zlib.crc32(place.encode()) % len(choices)].format(name=item.name, owner=owner(entry))


def owner(entry: Entry) -> str:
    """The last two parts of a name: enough to tell a method or function from others."""
    return ".".join(entry.name.split(".")[-2:])


def f1(left: list[str], right: list[str]) -> float:
    """SQuAD's F1 of two answers' tokens, articles left out."""
    a, b = (Counter(word for word in side if word not in ("a", "an", "the")) for side in (left, right))
    common = (a & b).total()
    return 2 * common / (a.total() + b.total()) if common else 0.0


def closed_book_f1(rows: list[Row], names: list[tuple[str, str]]) -> float:
    """Mean F1 on a tenth of the modules, of the answer that a reader without the context would give.

    Two readers, of whom the better counts: one says the most typical answer (largest mean F1 to the others) that the
    other modules give to the same name, or where the name is new, to the same sort of question; one repeats the name.
    """
    train: defaultdict[Any, list[list[str]]] = defaultdict(list)
    held: list[tuple[tuple[str, str], list[str]]] = []
    for row, name in zip(rows, names, strict=True):
        tokens = words(row["answers"][0])
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
    remembered = sum(f1(typical.get(name) or typical.get(name[0]) or [], tokens) for name, tokens in held)
    repeated = sum(f1(name_words(name[1]), tokens) for name, tokens in held)
    return max(remembered, repeated) / len(held) if held else 0.0


def name_words(name: str) -> list[str]:
    """The words inside a name: `n_samples` and `nSamples` are n, samples."""
    return words(re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " ")))


# -- classification ---------------------------------------------------------------------------------------------------

TEXT_CHARACTERS = (150, 700)
PER_CLASS = 1000
LABELS = {"sklearn": "scikit-learn", "torch": "pytorch", "datasets": "huggingface", "huggingface_hub": "huggingface"}
PREFIX = re.compile(
    r"\b(?:numpy|np|scipy|pandas|pd|sklearn|torch|networkx|nx|matplotlib|mpl|plt|pyplot|nltk|sqlalchemy|sa|mlflow|datasets|"
    r"huggingface_hub|hf|python)\.(?=\w)"
)
NAMES = re.compile(
    r"\w*(?:numpy|scipy|pandas|sklearn|scikit[- ]?learn|scikits?|torch|networkx|matplotlib|pyplot|pylab|nltk|"
    r"natural language toolkit|sqlalchemy|mlflow|hugging[ _]?face|python)\w*",
    re.I,
)
ALIASES = re.compile(r"\b(?:np|pd|nx|mpl|plt|hf|HF(?:_\w+)?)\b")
MASK = "[library]"


def classification(found: Corpus, dropped: Counter[str], kept: Row) -> list[Row]:
    """Which library a text documents, the libraries' names masked; at most `PER_CLASS` texts a library."""
    rows: list[Row] = []
    own = sorted({entry.package for entry in found.entries if not NAMES.fullmatch(entry.package)} - {"datasets"})
    for entry in found.entries:
        prose = [entry.doc.summary, *entry.doc.body, *entry.doc.notes, *(item.line() for item in entry.doc.fields)]
        text = mask(first_characters([part for part in prose if part], TEXT_CHARACTERS[1]), own)
        if len(text) > TEXT_CHARACTERS[1]:
            text = first_characters([text], TEXT_CHARACTERS[1])
        if len(text) < TEXT_CHARACTERS[0]:
            dropped["classification: under 150 characters"] += 1
        elif text.count(MASK) > 4:
            dropped["classification: mostly names"] += 1
        else:
            label = LABELS.get(entry.package, entry.package)
            rows.append(
                {
                    "id": stamp(entry.id),
                    "text": text,
                    "text_pair": None,
                    "label": label,
                    "group": entry.module,
                    "split": split_of(entry.module),
                }
            )
    rows = across_modules(rows, lambda row: row["text"], "classification", dropped)
    counts: Counter[str] = Counter()
    balanced = []
    for row in rows:
        counts[row["label"]] += 1
        if counts[row["label"]] <= PER_CLASS:
            balanced.append(row)
        else:
            dropped["classification: over the library's share"] += 1
    kept["labels"] = dict(sorted(Counter(row["label"] for row in balanced).items()))
    return balanced


def mask(text: str, packages: Iterable[str] = ()) -> str:
    """Remove import prefixes and replace library names, those of `packages` too."""
    text = ALIASES.sub(MASK, NAMES.sub(MASK, PREFIX.sub("", text)))
    folded = text.casefold()  # to look for a name in it takes a hundredth of the expression's time
    others = "|".join(re.escape(name) for name in packages if name.casefold() in folded)
    return re.sub(rf"\w*(?:{others})\w*", MASK, text, flags=re.I) if others else text


# -- all three --------------------------------------------------------------------------------------------------------


def stamp(place: str) -> str:
    """A record's id: a hash before the place, so that the first records by id are a fair sample of all."""
    return f"{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}:{place}"


def across_modules(rows: list[Row], text: Callable[[Row], str], task: str, dropped: Counter[str]) -> list[Row]:
    """Rows by id, without those that share a long line or most of their text with another module.

    Splits are by module, so nothing of a test text was seen in training.
    """
    rows = sorted(rows, key=lambda row: row["id"])
    keep = near_duplicates([text(row) for row in rows], [row["group"] for row in rows], NEAR)
    first: dict[str, str] = {}
    for number, row in enumerate(rows):
        lines = [line for line in text(row).splitlines() if len(line) > LONG_LINE]
        keep[number] = keep[number] and all(first.get(line, row["group"]) == row["group"] for line in lines)
        if keep[number]:
            first.update((line, str(row["group"])) for line in lines)
    dropped[f"{task}: nearly a text of another module"] += len(rows) - sum(keep)
    return [row for row, good in zip(rows, keep, strict=True) if good]

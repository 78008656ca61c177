"""Two tasks from documentation: summarise it, and name the library that it documents."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from llm.sources.docs.dedup import words
from llm.sources.docs.prose import STOPWORDS, first_characters, sentences
from llm.sources.docs.scan import Corpus, Entry
from llm.sources.docs.split import Row, across_modules, task_row

# -- summarization

SUMMARY_CHARACTERS = (20, 150)
DOCUMENT_CHARACTERS = (200, 1200)
# Share of the summary's content words that must occur in the document.
MIN_SUPPORT = 0.5


def summarization(corpus: Corpus, dropped: Counter[str], kept: Row) -> list[Row]:
    """Return docstring bodies with their summary lines, where the body supports the summary."""
    rows: list[Row] = []
    for entry in corpus.entries:
        document = first_characters(details(entry), DOCUMENT_CHARACTERS[1])
        if len(document) < DOCUMENT_CHARACTERS[0]:
            dropped["summarization: document under 200 characters"] += 1
        elif reason := poor_summary(entry.doc.summary, document):
            dropped[f"summarization: {reason}"] += 1
        else:
            texts = {"document": document, "summary": entry.doc.summary}
            rows.append(task_row(entry.id, entry.module, **texts))
    return across_modules(rows, lambda row: row["document"], "summarization", dropped)


def details(entry: Entry) -> list[str]:
    """Return an entry's paragraphs and fields, all but its summary."""
    return [*entry.doc.body, *entry.doc.notes, *(item.line() for item in entry.doc.fields)]


def poor_summary(summary: str, document: str) -> str:
    """Return why a line is not a one-sentence summary of the document, or ""."""
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


# -- classification

TEXT_CHARACTERS = (150, 700)
PER_CLASS = 1000
LABELS = {
    "sklearn": "scikit-learn",
    "torch": "pytorch",
    "datasets": "huggingface",
    "huggingface_hub": "huggingface",
}
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


def classification(corpus: Corpus, dropped: Counter[str], kept: Row) -> list[Row]:
    """Return texts labelled with their library, its name masked; at most `PER_CLASS` a library."""
    rows: list[Row] = []
    packages = {entry.package for entry in corpus.entries} - {"datasets"}
    own = sorted(package for package in packages if not NAMES.fullmatch(package))
    for entry in corpus.entries:
        parts = [part for part in (entry.doc.summary, *details(entry)) if part]
        text = mask(first_characters(parts, TEXT_CHARACTERS[1]), own)
        if len(text) > TEXT_CHARACTERS[1]:
            text = first_characters([text], TEXT_CHARACTERS[1])
        if len(text) < TEXT_CHARACTERS[0]:
            dropped["classification: under 150 characters"] += 1
        elif text.count(MASK) > 4:
            dropped["classification: mostly names"] += 1
        else:
            label = LABELS.get(entry.package, entry.package)
            columns = {"text": text, "text_pair": None, "label": label}
            rows.append(task_row(entry.id, entry.module, **columns))
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
    """Remove import prefixes and mask the names of libraries and of `packages`."""
    text = ALIASES.sub(MASK, NAMES.sub(MASK, PREFIX.sub("", text)))
    folded = text.casefold()  # searching it takes a hundredth of the regular expression's time
    others = "|".join(re.escape(name) for name in packages if name.casefold() in folded)
    return re.sub(rf"\w*(?:{others})\w*", MASK, text, flags=re.I) if others else text

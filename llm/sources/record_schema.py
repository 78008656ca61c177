"""The schema of each kind of record: the file columns it is made of, and the values it accepts.

Well-known data sets (GLUE, SQuAD, CNN/DailyMail, Alpaca, Dolly, OpenWebText) are mapped by their
column names; the params `columns` and `labels` map others. An invalid record raises `Rejected` with
the reason."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from llm.errors import UserError
from llm.sources.raw import SPLITS, fields, text_bytes

# Sets of columns that occur together, the most specific first. Other columns are looked up in
# SYNONYMS.
KNOWN: dict[str, list[dict[str, str]]] = {
    "pretrain": [],
    "summarization": [{"document": "article", "summary": "highlights"}],  # cnn_dailymail
    "question_answering": [],
    "classification": [
        {"text": "sentence1", "text_pair": "sentence2"},  # GLUE RTE, MRPC, WNLI, STS-B
        {
            "text": "question1",
            "text_pair": "question2",
            "label": "is_duplicate",
        },  # QQP as distributed
        {"text": "question1", "text_pair": "question2"},  # QQP
        {"text": "premise", "text_pair": "hypothesis"},  # MNLI, SNLI
        {"text": "question", "text_pair": "sentence"},  # QNLI
        {
            "text": "#1 String",
            "text_pair": "#2 String",
            "label": "Quality",
        },  # MSR paraphrases as distributed
        {"text": "Title", "text_pair": "Description", "label": "Class Index"},  # AG News
    ],
    "instructions": [
        {"instruction": "instruction", "input": "context", "output": "response"}
    ],  # dolly
}
SYNONYMS: dict[str, dict[str, tuple[str, ...]]] = {
    "pretrain": {"text": ("text", "content", "document"), "source": ("source",), "group": ()},
    "summarization": {"document": ("document", "article", "text", "dialogue"), "summary": ("summary", "highlights")},
    "question_answering": {
        "context": ("context",), "question": ("question",), "answers": ("answers", "answer"),
        "group": ("group", "title"),
    },
    "classification": {
        "text": ("text", "sentence", "content"), "text_pair": ("text_pair",), "label": ("label", "gold_label"),
    },
    "instructions": {
        "instruction": ("instruction", "prompt"), "input": ("input",), "output": ("output", "response", "completion"),
    },
}  # fmt: skip
# How Python and JSON print SQuAD's answers, or a list of them.
PRINTED = re.compile(
    r"""\s*(\{\s*['"](text|answer_start)['"]\s*:|\[\s*(['"{]|\])|array\(|\{\s*\}\s*$)"""
)
OPTIONAL = {"id", "source", "group", "split", "text_pair", "input"}
# Marks of unlabelled examples, in lower case. A class of such a name must be listed in `labels`.
UNLABELLED = {
    "-1": "stands for an unlabelled example",  # GLUE's test sets
    "-": "stands for an example whose annotators did not agree",  # SNLI, MNLI
    **dict.fromkeys(
        ("nan", "<na>", "null"), "stands for a missing value"
    ),  # a table written by pandas, a database
}
NUMBER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)")  # with a decimal point
SCORE = "label is a number with a fraction"  # a reason that `RecordFilter.check` explains


class Rejected(Exception):  # noqa: N818 - not an error of the program
    """An invalid record: a short reason, which is counted, and the details."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class MissingColumns(Rejected):
    """A column that a kind needs is missing."""


class RecordSchema:
    """Converts a file's records to the columns of a kind.

    Args:
        name: name of the data set, for messages.
        kind: one of `raw.FIELDS` or of `llm.tasks`.
        columns: our column -> the file's; takes precedence over the known names.
        labels: names of integer classes in order, or value -> name.

    Raises:
        UserError: `columns` names a column that the kind does not have, or `labels` is set for a
            kind without classes.
    """

    def __init__(
        self,
        name: str,
        kind: str,
        columns: dict[str, str],
        labels: Sequence[str] | dict[str, str] | None,
    ) -> None:
        self.name, self.kind, self.columns, self.labels = name, kind, columns, labels
        for ours in columns:
            if ours not in fields(kind):
                raise UserError(
                    f"download.{name}.columns.{ours}: {kind} has no such column; expected {', '.join(fields(kind))}. "
                    "Ours stands before the colon, the file's after it."
                )
        if labels is not None and "label" not in fields(kind):
            raise UserError(
                f"download.{name}.labels: {kind} has no classes. Remove it, or set download.{name}.kind."
            )
        self._mappings: dict[tuple[str, ...], dict[str, str]] = {}

    def mapping(self, names: Sequence[str]) -> dict[str, str]:
        """Return our column -> the file's, for a file with these columns.

        Raises:
            MissingColumns: a column that the kind needs is missing.
        """
        key = tuple(names)
        if key not in self._mappings:
            if len(self._mappings) > 1000:  # records without a common schema
                self._mappings.clear()
            self._mappings[key] = self._map(key)
        return self._mappings[key]

    def _map(self, names: tuple[str, ...]) -> dict[str, str]:
        known = next((k for k in KNOWN.get(self.kind, []) if set(k.values()) <= set(names)), {})
        mapping: dict[str, str] = {}
        for ours in fields(self.kind):
            if ours in self.columns:
                candidates: tuple[str, ...] = (self.columns[ours],)
            else:
                own_name = (
                    (ours,)
                    if ours in ("group", "split") or (ours == "id" and self.kind != "pretrain")
                    else ()
                )
                synonyms = (
                    SYNONYMS[self.kind].get(ours, own_name) if self.kind in SYNONYMS else (ours,)
                )
                candidates = ((known[ours],) if ours in known else ()) + synonyms
            theirs = next((name for name in candidates if name in names), None)
            if theirs is not None:
                mapping[ours] = theirs
            elif ours not in OPTIONAL or ours in self.columns:
                expected = " or ".join(repr(name) for name in candidates)
                raise MissingColumns(
                    "missing column",
                    f"no column {expected} for {self.kind}; found {', '.join(map(repr, names[:12])) or 'none'}",
                )
        return mapping

    def keep(self, names: list[str]) -> list[str]:
        """Return the columns to read of a columnar file."""
        return sorted(set(self.mapping(names).values()), key=names.index)

    def advice(self) -> str:
        """Return advice on naming columns in the params."""
        needed = [name for name in fields(self.kind) if name not in OPTIONAL]
        return f"Name them with download.{self.name}.columns: {{{', '.join(f'{name}: THEIRS' for name in needed)}}}"

    def positions(self) -> str:
        """Return the value of `columns` that names columns by position."""
        needed = [name for name in fields(self.kind) if name not in OPTIONAL]
        return f"{{{', '.join(f'{name}: {number}' for number, name in enumerate(needed))}}}"

    def convert(self, record: dict[str, Any], class_names: dict[str, list[str]]) -> dict[str, Any]:
        """Return our columns of one record; a missing `id`, `group` or `split` is "".

        Args:
            record: the record in the file's columns.
            class_names: names of integer classes by the file's column, if the file holds them.

        Raises:
            Rejected: a column is missing, empty or of another type; an answer is not at its offset;
                there is no label, or it has no name; a string holds NUL characters or is not UTF-8.
        """
        mapping = self.mapping(tuple(record))
        converted: dict[str, Any] = {}
        for ours in fields(self.kind):
            value = record.get(mapping[ours]) if ours in mapping else None
            if ours == "answers":
                converted[ours] = _answers(value, record, converted["context"])
            elif ours == "label":
                converted[ours] = self._label(value, class_names.get(mapping[ours]))
            elif ours in ("id", "group", "split", "source"):
                converted[ours] = (
                    "" if value is None or isinstance(value, dict | list) else str(value)
                )
            elif ours == "text_pair" and value is None:
                converted[ours] = None
            elif ours == "input" and value is None:
                converted[ours] = ""
            else:
                converted[ours] = _string(ours, value, empty=ours == "input")
        if converted.get("split", "") not in SPLITS:
            raise Rejected(
                "unknown split",
                f"{converted['split']!r}; expected train, validation, test or an empty string",
            )
        _check_characters(converted)
        return converted

    def class_names(self, file_names: dict[str, list[str]], columns: Sequence[str]) -> list[str]:
        """Return the class names in order, from the params or else the file; [] without either."""
        if self.labels is not None:
            return list(
                dict.fromkeys(
                    self.labels.values() if isinstance(self.labels, dict) else self.labels
                )
            )
        return file_names.get(self.mapping(columns)["label"], [])

    def _label(self, value: Any, file_names: Sequence[str] | None) -> str:
        if (
            value is None
            or isinstance(value, dict | list)
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise Rejected("no label", f"found {value!r}")
        text = str(value).lower() if isinstance(value, bool) else str(value).strip()
        number = (
            value if isinstance(value, float) else float(text) if NUMBER.fullmatch(text) else None
        )
        spellings = [text]
        if isinstance(value, bool) or (number is not None and number.is_integer()):
            spellings.append(
                str(int(value if number is None else number))
            )  # a column with gaps holds 1.0 for 1
        names = self.labels if self.labels is not None else file_names
        named = next(
            (spelling for spelling in spellings if names is not None and spelling in names), None
        )
        if named is not None:
            return names[named] if isinstance(names, dict) else named
        last = spellings[-1]
        if not text:
            raise Rejected("no label", f"found {value!r}")
        if reason := UNLABELLED.get(last.lower()):
            where = f"download.{self.name}.labels"
            raise Rejected(
                "no label", f"{last} {reason}; if it is a class, give it a name in {where}"
            )
        if isinstance(names, dict):
            raise Rejected("unknown label", f"{text!r} is not among the labels {', '.join(names)}")
        if names is not None:
            if not last.isdecimal() or int(last) >= len(names):
                raise Rejected(
                    "unknown label", f"{text!r}; the {len(names)} labels are 0 to {len(names) - 1}"
                )
            return names[int(last)]
        if number is not None and not number.is_integer():
            raise Rejected(SCORE, f"{text!r}")
        return last if isinstance(value, float) else text


def _string(name: str, value: Any, empty: bool = False) -> str:
    if value is None:
        raise Rejected(f"no {name}", "null")
    if not isinstance(value, str):
        raise Rejected(
            f"{name} is not a string", f"found {type(value).__name__}: {str(value)[:60]!r}"
        )
    if not empty and not value.strip():
        raise Rejected(f"empty {name}")
    return value


def _answers(value: Any, record: dict[str, Any], context: str) -> list[str]:
    """Return the answer texts; those with an offset are checked against the context.

    Args:
        value: SQuAD's JSON ([{text, answer_start}]), its form on the hub ({text: [...],
            answer_start: [...]}), or strings.
    """
    if record.get("is_impossible") is True:
        return []
    pairs: list[tuple[Any, Any]]
    if isinstance(value, str):
        if PRINTED.match(value) and value.strip() not in context:
            raise Rejected(
                "answers printed as text",
                f"{value[:60]!r}; a CSV cannot hold a list: write .jsonl or .parquet, or the answer alone",
            )
        pairs = [(value, None)]
    elif isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or (
            starts is not None and (not isinstance(starts, list) or len(starts) != len(texts))
        ):
            raise Rejected(
                "answers of an unknown form",
                "expected lists `text` and `answer_start` of one length",
            )
        pairs = list(zip(texts, starts if starts is not None else [None] * len(texts), strict=True))
    elif isinstance(value, list) and all(isinstance(item, dict | str) for item in value):
        pairs = [
            (a, None) if isinstance(a, str) else (a.get("text"), a.get("answer_start", "missing"))
            for a in value
        ]
    else:
        raise Rejected(
            "answers of an unknown form",
            f"found {type(value).__name__}; expected a list (empty: no answer)",
        )
    return [_answer(text, start, context) for text, start in pairs]


def _answer(text: Any, start: Any, context: str) -> str:
    text = _string("answer", text)
    if start is None:
        return text
    if isinstance(start, bool) or not isinstance(start, int):
        raise Rejected(
            "answer without an offset",
            f"answer_start of {text!r} is {start!r}, expected an integer",
        )
    if start >= 0 and context.startswith(text, start):
        return text
    there = context[start : start + len(text)] if start >= 0 else ""
    times = context.count(text)
    where = (
        f"it is in the context once, at {context.index(text)}" if times == 1 else
        f"it is in the context {times} times" if times else "it is nowhere in the context"
    )  # fmt: skip
    raise Rejected(
        "answer not at its offset",
        f"{text[:60]!r} is not at answer_start {start} (there: {there[:60]!r}); {where}",
    )


def _check_characters(converted: dict[str, Any]) -> None:
    for name, value in converted.items():
        for text in value if isinstance(value, list) else (value or "",):
            if "\0" in text:
                raise Rejected("NUL characters", f"{text.count(chr(0))} of them in {name}")
    try:
        text_bytes(converted)
        for name in ("id", "group", "source"):
            converted.get(name, "").encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        if 0xDC80 <= code <= 0xDCFF:
            raise Rejected(
                "not UTF-8",
                f"byte 0x{code - 0xDC00:02x} at character {error.start}; convert it to UTF-8",
            ) from None
        raise Rejected(
            "half of a surrogate pair", f"U+{code:04X} at character {error.start}"
        ) from None

"""Counts and examples of what each rule did, for metrics/tokenize.json and the report."""

from __future__ import annotations

from collections import Counter
from typing import Any

from llm.corpus.clean.rules import Cleaned
from llm.params import Clean

EXAMPLES = 5  # examples of each rule, those of the first documents
EXCERPT = 240  # characters of an excerpt
BEFORE = 40  # characters of it before an edit


class Tally:
    """Counts of documents, edits and bytes by rule; the tallies of parts add up."""

    def __init__(self) -> None:
        self.removed: Counter[str] = Counter()  # documents
        self.removed_bytes: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()  # documents
        # lines or matches, or documents if the rule edits the whole text
        self.edits: Counter[str] = Counter()
        self.cut_bytes: Counter[str] = Counter()  # by which edits shortened documents
        self.documents = self.bytes = self.kept = self.kept_bytes = 0
        # rule -> document's index, text before, text after ("": removed)
        self.examples: dict[str, list[tuple[int, str, str]]] = {}

    def add(self, index: int, before: str, cleaned: Cleaned) -> None:
        """Count a document.

        Args:
            index: its index in data/raw/pretrain.
            before: its original text.
            cleaned: the result of the rules.
        """
        size = len(before.encode("utf-8", "replace"))
        self.documents += 1
        self.bytes += size
        if cleaned.text is None:
            rule = cleaned.removed or "empty"
            self.removed[rule] += 1
            self.removed_bytes[rule] += size
            self._example(rule, index, excerpt(cleaned.seen))
            return
        self.kept += 1
        self.kept_bytes += len(cleaned.text.encode("utf-8", "replace"))
        for rule, edit in (cleaned.edits or {}).items():
            self.changed[rule] += 1
            self.edits[rule] += edit.number
            self.cut_bytes[rule] += len(edit.before.encode("utf-8", "replace")) - len(
                edit.after.encode("utf-8", "replace")
            )
            if len(self.examples.get(rule, ())) < EXAMPLES:
                # Never show the personal data that was removed.
                old, new = around(edit.before, edit.after)
                self._example(rule, index, new if rule.startswith("personal_data") else old, new)

    def merge(self, other: Tally) -> None:
        """Add the tally of later documents."""
        for name in ("removed", "removed_bytes", "changed", "edits", "cut_bytes"):
            getattr(self, name).update(getattr(other, name))
        for name in ("documents", "bytes", "kept", "kept_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for rule, examples in other.examples.items():
            self.examples[rule] = sorted([*self.examples.get(rule, []), *examples])[:EXAMPLES]

    def metrics(self, params: Clean) -> dict[str, Any]:
        """Return `clean` of metrics/tokenize.json, with every rule that is on."""
        rules = {rule: self._rule(rule) for rule in on(params)}
        rules |= {
            rule: self._rule(rule) for rule in (*self.removed, *self.changed) if rule not in rules
        }
        return {
            "documents": self.documents,
            "kept": self.kept,
            "bytes": self.bytes,
            "kept_bytes": self.kept_bytes,
            "rules": rules,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the tally as a JSON object."""
        return {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """Return the tally that `to_json` wrote."""
        tally = cls()
        for name, counts in value.items():
            is_counter = isinstance(getattr(tally, name), Counter)
            setattr(tally, name, Counter(counts) if is_counter else counts)
        tally.examples = {
            rule: [(index, text, became) for index, text, became in examples]
            for rule, examples in tally.examples.items()
        }
        return tally

    def _rule(self, rule: str) -> dict[str, Any]:
        return {
            "removed": self.removed[rule],
            "removed_bytes": self.removed_bytes[rule],
            "changed": self.changed[rule],
            "edits": self.edits[rule],
            "cut_bytes": self.cut_bytes[rule],
            "examples": [
                {"document": index, "text": text, "became": became}
                for index, text, became in self.examples.get(rule, [])
            ],
        }

    def _example(self, rule: str, index: int, text: str, became: str = "") -> None:
        examples = self.examples.setdefault(rule, [])
        if len(examples) < EXAMPLES:
            examples.append((index, text, became))


def on(params: Clean) -> list[str]:
    """Return the rules that are on, in the order of params.yaml, as `section.rule` or `rule`."""
    names = []
    for name, value in params.model_dump().items():
        if isinstance(value, dict) and name != "near_duplicates":
            names += [f"{name}.{rule}" for rule, setting in value.items() if setting]
        elif value and (name != "min_language_probability" or params.languages):
            names.append(name)
    return names


def excerpt(text: str, start: int = 0) -> str:
    """Return a part of a text on one line; "…" marks a cut."""
    line = " ".join(text[start : start + 2 * EXCERPT].split())
    cut = start + 2 * EXCERPT < len(text) or len(line) > EXCERPT
    return ("… " if start else "") + line[:EXCERPT] + (" …" if cut else "")


def around(before: str, after: str) -> tuple[str, str]:
    """Return excerpts, before and after, from the first change of a text."""
    pairs = enumerate(zip(before, after, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(0, start - BEFORE)
    return excerpt(before, start), excerpt(after, start)

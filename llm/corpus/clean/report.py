"""What each rule did, for metrics/tokenize.json and the report: counts, and a few examples."""

from __future__ import annotations

from collections import Counter
from typing import Any

from llm.corpus.clean.rules import Cleaned
from llm.params import Clean

EXAMPLES = 5  # of each rule, the first by place
EXCERPT = 240  # characters
BEFORE = 40  # of them before the place of an edit


class Tally:
    """Counts of documents, edits and bytes by rule; tallies of parts of the documents add up to
    that of the whole.
    """

    def __init__(self) -> None:
        self.removed: Counter[str] = Counter()  # documents
        self.removed_bytes: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()  # documents
        self.edits: Counter[str] = (
            Counter()
        )  # lines, places, or documents where the edit is of the whole
        self.documents = self.bytes = self.kept = self.kept_bytes = 0
        self.examples: dict[
            str, list[tuple[int, str, str]]
        ] = {}  # place, text, and what it became ("": nothing)

    def add(self, index: int, before: str, cleaned: Cleaned) -> None:
        """A document: its place, its text as it was, and what became of it."""
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
            if len(self.examples.get(rule, ())) < EXAMPLES:
                # What was personal is not shown again.
                old, new = around(edit.before, edit.after)
                self._example(rule, index, new if rule.startswith("personal_data") else old, new)

    def merge(self, other: Tally) -> None:
        """Add the tally of documents that come after these."""
        for name in ("removed", "removed_bytes", "changed", "edits"):
            getattr(self, name).update(getattr(other, name))
        for name in ("documents", "bytes", "kept", "kept_bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for rule, shown in other.examples.items():
            self.examples[rule] = sorted([*self.examples.get(rule, []), *shown])[:EXAMPLES]

    def metrics(self, params: Clean) -> dict[str, Any]:
        """`clean` of metrics/tokenize.json: every rule that is on, those that found nothing too."""
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
        """As JSON holds it."""
        return {
            name: dict(value) if isinstance(value, dict) else value
            for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Tally:
        """What `to_json` gave."""
        found = cls()
        for name, held in value.items():
            setattr(
                found, name, Counter(held) if isinstance(getattr(found, name), Counter) else held
            )
        found.examples = {
            rule: [(i, text, became) for i, text, became in shown]
            for rule, shown in found.examples.items()
        }
        return found

    def _rule(self, rule: str) -> dict[str, Any]:
        return {
            "removed": self.removed[rule],
            "removed_bytes": self.removed_bytes[rule],
            "changed": self.changed[rule],
            "edits": self.edits[rule],
            "examples": [
                {"document": index, "text": text, "became": became}
                for index, text, became in self.examples.get(rule, [])
            ],
        }

    def _example(self, rule: str, index: int, text: str, became: str = "") -> None:
        shown = self.examples.setdefault(rule, [])
        if len(shown) < EXAMPLES:
            shown.append((index, text, became))


def on(params: Clean) -> list[str]:
    """Names of the rules that are on, in the order of params.yaml: `section.rule`, or `rule`."""
    found = []
    for name, value in params.model_dump().items():
        if isinstance(value, dict) and name != "near_duplicates":
            found += [f"{name}.{rule}" for rule, setting in value.items() if setting]
        elif value and (name != "min_language_probability" or params.languages):
            found.append(name)
    return found


def excerpt(text: str, start: int = 0) -> str:
    """A stretch of a text on one line, what was cut marked."""
    shown = " ".join(text[start : start + 2 * EXCERPT].split())
    cut = start + 2 * EXCERPT < len(text) or len(shown) > EXCERPT
    return ("… " if start else "") + shown[:EXCERPT] + (" …" if cut else "")


def around(before: str, after: str) -> tuple[str, str]:
    """What stands at the first place where a text was changed: before and after, on one line each."""
    pairs = enumerate(zip(before, after, strict=False))
    start = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = max(0, start - BEFORE)
    return excerpt(before, start), excerpt(after, start)

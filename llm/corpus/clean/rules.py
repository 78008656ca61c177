"""Rules that look at one document: a pure function of its text, the same in every process."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property
from typing import Any, NamedTuple

from llm.corpus.clean import personal_data, unicode
from llm.errors import UserError
from llm.params import Clean

# Characters from the middle of a document that decide its language: headers mislead.
LANGUAGE_CHARACTERS = 1000


class Edit(NamedTuple):
    """Edit of a document's text by a rule."""

    number: int  # edited lines or matches; 1 if the rule edits the whole text
    before: str
    after: str


class Cleaned(NamedTuple):
    """Result of the rules for a document."""

    text: str | None  # None: it was removed
    removed: str | None = None  # the rule that removed it, named as its param
    edits: dict[str, Edit] | None = None  # rule -> edit
    seen: str = ""  # the text that the removing rule saw


Step = Callable[[str], Cleaned]


class Cleaner:
    """Applies the rules of `tokenize.clean` that look at one document, in the order of params.yaml.

    It can be pickled, because models are loaded at the first call.
    """

    def __init__(self, params: Clean) -> None:
        """Check the params.

        Raises:
            UserError: a language or a region is unknown.
        """
        self.params = params
        self._check()

    def __call__(self, text: str) -> Cleaned:
        edits: dict[str, Edit] = {}
        for step in self._steps:
            cleaned = step(text)
            edits.update(cleaned.edits or {})
            if cleaned.text is None or not cleaned.text.strip():
                return Cleaned(None, cleaned.removed or "empty", None, text)
            text = cleaned.text
        return Cleaned(text, None, edits)

    def __getstate__(self) -> dict[str, Any]:
        return {"params": self.params}

    @cached_property
    def _steps(self) -> list[Step]:
        p = self.params
        steps: list[Step] = []
        if p.unicode:
            steps.append(_edit("unicode", unicode.nfc if p.unicode == "nfc" else unicode.fixed))
        if p.whitespace:
            steps.append(_edit("whitespace", unicode.white_space))
        if any(p.personal_data.model_dump().values()):
            steps.append(self._masked)
        if p.min_characters or p.max_characters:
            steps.append(self._length)
        if p.languages:
            steps.append(self._language)
        if _any(p.gopher_quality) or _any(p.gopher_repetition) or _any(p.c4):
            from llm.corpus.clean import quality

            if _any(p.gopher_quality):
                steps.append(_judged(quality.Quality(p.gopher_quality)))
            if _any(p.gopher_repetition):
                steps.append(_judged(quality.Repetition(p.gopher_repetition)))
            if _any(p.c4):
                steps.append(_judged(quality.Crawl(p.c4)))
        return steps

    def _masked(self, text: str) -> Cleaned:
        masked, counts = personal_data.mask(text, self.params.personal_data)
        edits = {
            f"personal_data.{name}": Edit(count, text, masked) for name, count in counts.items()
        }
        return Cleaned(masked, None, edits)

    def _length(self, text: str) -> Cleaned:
        if self.params.min_characters and len(text) < self.params.min_characters:
            return Cleaned(None, "min_characters")
        if self.params.max_characters and len(text) > self.params.max_characters:
            return Cleaned(None, "max_characters")
        return Cleaned(text)

    def _language(self, text: str) -> Cleaned:
        start = max(0, (len(text) - LANGUAGE_CHARACTERS) // 2)
        language, probability = _identifier().classify(text[start : start + LANGUAGE_CHARACTERS])
        if language not in (self.params.languages or ()):
            return Cleaned(None, "languages")
        if probability < self.params.min_language_probability:
            return Cleaned(None, "min_language_probability")
        return Cleaned(text)

    def _check(self) -> None:
        if self.params.languages:
            unknown = sorted(set(self.params.languages) - set(_identifier().labels))
            if unknown:
                raise UserError(
                    f"tokenize.clean.languages: {', '.join(unknown)} is not a language that py3langid knows; expected "
                    f"of {', '.join(sorted(_identifier().labels))}."
                )
        if region := self.params.personal_data.phone:
            import phonenumbers

            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise UserError(
                    f"tokenize.clean.personal_data.phone: {region} is no region with telephone numbers; expected an "
                    "ISO 3166 code such as US or DE."
                )


@cache
def _identifier() -> Any:
    """Load py3langid's model (Lui and Baldwin 2012); it takes 100 MB, once a process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _edit(rule: str, function: Callable[[str], str]) -> Step:
    def step(text: str) -> Cleaned:
        after = function(text)
        return Cleaned(after, None, {rule: Edit(1, text, after)} if after != text else None)

    return step


def _judged(judge: Any) -> Step:
    def step(text: str) -> Cleaned:
        verdict = judge(text)
        if verdict.removed:
            return Cleaned(None, verdict.removed)
        edits = {rule: Edit(count, text, verdict.text) for rule, count in verdict.changed.items()}
        return Cleaned(verdict.text, None, edits)

    return step


def _any(section: Any) -> bool:
    return any(section.model_dump().values())

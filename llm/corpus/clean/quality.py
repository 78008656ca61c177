"""Quality rules of Gopher and of C4, by the filters of datatrove, the library that made FineWeb.

datatrove splits words with spaCy by default. Here the filters get a word tokenizer that needs no
model: words stand between blanks, as in Dolma and RedPajama, and sentences end at . ! ? before a
blank.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from llm.params.clean import C4, GopherQuality, GopherRepetition
from llm.text.ngrams import pieces

if TYPE_CHECKING:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.utils.word_tokenizers import WordTokenizer

# Gopher's rules judge so many characters of a document, because lists of words and n-grams take
# sixty times as much memory. Words are counted to the end of the document.
JUDGED = 1 << 20
OFF = -1  # C4QualityFilter's value for a rule that is off

QUALITY = {  # datatrove's reason -> the param of the rule
    "gopher_short_doc": "min_doc_words",
    "gopher_long_doc": "max_doc_words",
    "gopher_below_avg_threshold": "min_avg_word_length",
    "gopher_above_avg_threshold": "max_avg_word_length",
    "gopher_too_many_hashes": "max_symbol_word_ratio",
    "gopher_too_many_ellipsis": "max_symbol_word_ratio",
    "gopher_too_many_bullets": "max_bullet_lines_ratio",
    "gopher_too_many_end_ellipsis": "max_ellipsis_lines_ratio",
    "gopher_below_alpha_threshold": "min_alpha_words_ratio",
    "gopher_enough_stop_words": "min_stop_words",
}
DOCUMENTS = {
    "lorem_ipsum": "filter_lorem_ipsum",
    "curly_bracket": "filter_curly_bracket",
    "too_few_sentences": "min_num_sentences",
}
LINES = {
    "line-filter-too_long_word": "max_word_length",
    "line-filter-no_terminal_punc": "filter_no_terminal_punct",
    "line-filter-too_few_words": "min_words_per_line",
    "line-filter-javascript": "filter_javascript",
    "line-filter-policy": "filter_policy",
}


class Verdict(NamedTuple):
    """The remaining text, the rule that removed the document, removed lines or marks by rule."""

    text: str
    removed: str | None
    changed: dict[str, int]


def _words() -> WordTokenizer:
    from datatrove.utils.word_tokenizers import WordTokenizer

    class Blanks(WordTokenizer):
        """Words between blanks; sentences that end in . ! or ? before a blank."""

        end = re.compile(r"(?<=[.!?])[\"'”’)\]]*\s+")

        def word_tokenize(self, text: str) -> list[str]:
            return text.split()

        def sent_tokenize(self, text: str) -> list[str]:
            return [text[start:end] for start, end in self.span_tokenize(text)]

        def span_tokenize(self, text: str) -> list[tuple[int, int]]:
            starts = [
                0,
                *(match.end() for match in self.end.finditer(text) if match.end() < len(text)),
            ]
            return list(zip(starts, [*starts[1:], len(text)], strict=True))

    return Blanks()


class Quality:
    """Gopher's document rules."""

    def __init__(self, p: GopherQuality) -> None:
        from datatrove.pipeline.filters import GopherQualityFilter
        from datatrove.utils.text import PUNCTUATION_SET

        options = p.model_dump()
        # datatrove's name says the opposite of what it does; a to-do in its source says so too.
        options["max_non_alpha_words_ratio"] = options.pop("min_alpha_words_ratio")
        self.filter: GopherQualityFilter = GopherQualityFilter(**options, language=_words())
        self.punctuation, self.p = PUNCTUATION_SET, p

    def __call__(self, text: str) -> Verdict:
        if len(text) > JUDGED:
            if self.p.max_doc_words and self._words(text) > self.p.max_doc_words:
                return Verdict(text, "gopher_quality.max_doc_words", {})
            verdict = self(text[:JUDGED])
            return verdict._replace(text=text)
        # datatrove cannot compute the mean word length of a text without words.
        if all(char in self.punctuation or char.isspace() for char in text):
            first = "min_doc_words" if self.p.min_doc_words else "min_alpha_words_ratio"
            return Verdict(text, f"gopher_quality.{first}" if getattr(self.p, first) else None, {})
        reason = _reason(self.filter, text)
        return Verdict(text, f"gopher_quality.{QUALITY[reason]}" if reason else None, {})

    def _words(self, text: str) -> int:
        """Count the words of a long text, without those of punctuation alone."""
        return sum(
            not self.punctuation.issuperset(word)
            for piece in pieces(text)
            for word in piece.split()
        )


class Repetition:
    """Gopher's rules on repetition."""

    def __init__(self, p: GopherRepetition) -> None:
        from datatrove.pipeline.filters import GopherRepetitionFilter

        self.filter: GopherRepetitionFilter = GopherRepetitionFilter(
            **p.model_dump(), language=_words()
        )

    def __call__(self, text: str) -> Verdict:
        reason = _reason(self.filter, text[:JUDGED])
        if reason is None:
            return Verdict(text, None, {})
        rule = (
            "top_n_grams"
            if reason.startswith("top_")
            else "dup_n_grams"
            if "n_grams" in reason
            else reason
        )
        return Verdict(text, f"gopher_repetition.{rule}", {})


class Crawl:
    """C4's rules for lines and documents."""

    def __init__(self, p: C4) -> None:
        from datatrove.pipeline.filters import C4QualityFilter
        from datatrove.pipeline.filters.c4_filters import CITATION_REGEX

        class Counted(C4QualityFilter):
            def __init__(self, **options: object) -> None:
                super().__init__(**options)
                self.counted = Counter[str]()

            def stat_update(self, *labels: str, value: int = 1, unit: str | None = None) -> None:
                self.counted.update({LINES[label]: value for label in labels if label in LINES})

        options = {name: OFF if value is None else value for name, value in p.model_dump().items()}
        self.filter: C4QualityFilter = Counted(
            **(options | {"remove_citations": False}), language=_words()
        )
        self.citation = CITATION_REGEX if p.remove_citations else None
        self.lines = any(getattr(p, rule) for rule in LINES.values())

    def __call__(self, text: str) -> Verdict:
        changed: dict[str, int] = {}
        if self.citation:
            text, count = self.citation.subn("", text)
            if count:
                changed["c4.remove_citations"] = count
        from datatrove.data import Document

        document = Document(text=text, id="")
        self.filter.counted.clear()
        verdict = self.filter.filter(document)
        if verdict is not True:
            return Verdict(text, f"c4.{DOCUMENTS[verdict[1]]}", {})
        changed.update((f"c4.{rule}", count) for rule, count in sorted(self.filter.counted.items()))
        return Verdict(document.text if self.lines else text, None, changed)


def _reason(filter: GopherQualityFilter | GopherRepetitionFilter, text: str) -> str | None:
    from datatrove.data import Document

    verdict = filter.filter(Document(text=text, id=""))
    return None if verdict is True else verdict[1]

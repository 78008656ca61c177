"""Rules that split text into sentences, words (`llm.text.ngrams`) and ROUGE's tokens."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import regex

from llm.text.ngrams import words

if TYPE_CHECKING:
    from rouge_score.tokenizers import DefaultTokenizer

__all__ = ["RougeTokenizer", "Writing", "sentences", "word_borders", "words", "writing"]

# A sentence ends at `.`, `!` or `?` (and a closing quote or bracket) before white space and a
# capital, a letter of a script without capitals, a digit or an opening quote or bracket; not after
# "e.g.", "i.e.", "cf.", "vs.", or an initial such as "J.". At an ideographic full stop it ends
# without white space.
_END = regex.compile(
    r"(?:(?<=[.!?।۔؟])|(?<=[.!?।۔؟][\"'”’)\]]))"
    r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bcf\.)(?<!\bvs\.)(?<!\b\p{Lu}\.)"
    r"\s+(?=[\"'“‘«(\[`]*[\p{Lu}\p{Lt}\p{Lo}\p{N}])"
    r"|(?:(?<=[。！？])|(?<=[。！？][」』”’）]))(?![。！？」』”’）])\s*"
)
_LINES = regex.compile(r"\n+")
_PARAGRAPHS = regex.compile(r"\n[ \t]*\n\s*")


def sentences(text: str, lines: bool = False) -> list[str]:
    """Return the sentences of a text, stripped, without empty ones.

    Args:
        text: the text.
        lines: every line break ends a sentence, as in a summary with a sentence on each line.
            Otherwise only an empty line does, because documents are often wrapped.
    """
    blocks = (_LINES if lines else _PARAGRAPHS).split(text)
    return [
        part for block in blocks for sentence in _END.split(block) if (part := sentence.strip())
    ]


# -- scripts other than Latin ----------------------------------------------------------------------

Writing = Literal["latin", "words", "chinese", "characters"]
SHARE = 0.01  # share of the references' letters from which a script counts
_NO_SPACES = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
_TOKEN = regex.compile(rf"{_NO_SPACES}\p{{M}}*|(?:(?!{_NO_SPACES})[\p{{L}}\p{{M}}\p{{N}}])+")
_SCRIPTS = {
    "letters": regex.compile(r"\p{L}"),
    "foreign": regex.compile(r"[\p{L}--[\p{Latin}\p{Common}]]", regex.V1),
    "unspaced": regex.compile(_NO_SPACES),
    "han": regex.compile(r"\p{Han}"),
}


def writing(references: Iterable[Iterable[str]]) -> Writing:
    """Return the kind of script of a test set, from the letters of all its references together.

    Returns:
        "latin": hardly any letter of another script, so that the usual tokenizers of ROUGE and BLEU
            fit.
        "words": another script, with spaces between words.
        "chinese" or "characters": Chinese, or another script without spaces between words.
    """
    count = dict.fromkeys(_SCRIPTS, 0)
    for texts in references:
        for text in texts:
            if not text.isascii():
                for name, letter in _SCRIPTS.items():
                    count[name] += len(letter.findall(text))
            else:
                count["letters"] += sum(map(str.isalpha, text))
    least = max(1, SHARE * count["letters"])
    if count["foreign"] < least:
        return "latin"
    if count["unspaced"] < least:
        return "words"
    return (
        "chinese" if count["unspaced"] - count["han"] < SHARE * count["unspaced"] else "characters"
    )


def word_borders(text: str) -> tuple[list[int], list[int]]:
    """Return the indices of a text at which a word may begin, and those at which one may end.

    A word is a run of letters, marks and digits, or one character of a script without spaces; each
    other character that is not white space counts as a word. `text[:i]` ends where a word ends.
    """
    inside = {i for word in _TOKEN.finditer(text) for i in range(word.start() + 1, word.end())}
    visible = [i for i, char in enumerate(text) if not char.isspace()]
    starts = [i for i in visible if i not in inside]
    ends = [i + 1 for i in visible if i + 1 not in inside]
    return starts, ends


class RougeTokenizer:
    """Tokens for ROUGE in any script.

    ASCII words are split and stemmed by rouge-score. Other words stay whole, and each character of
    a script without spaces is a token. rouge-score's own tokenizer drops every letter outside a-z.
    """

    signature = (
        "words of any script, characters of scripts without spaces|stemmer:porter for ASCII words"
    )

    def tokenize(self, text: str) -> list[str]:
        """Return the tokens of a text, in lower case."""
        tokens: list[str] = []
        for word in _TOKEN.findall(text.lower()):
            tokens += self._english.tokenize(word) if word.isascii() else [word]
        return tokens

    @cached_property
    def _english(self) -> DefaultTokenizer:
        from rouge_score.tokenizers import DefaultTokenizer

        return DefaultTokenizer(use_stemmer=True)

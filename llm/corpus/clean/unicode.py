"""Normalisation of Unicode and white space."""

from __future__ import annotations

import re
import unicodedata

# _BLANK: Unicode's property White_Space without the blank, the tab and the line ends, and U+180E,
# which had the property once. _INVISIBLE: control characters, zero-width space, word joiner, byte
# order mark, soft hyphen.
_BLANK = re.compile("[\u00a0\u1680\u180e\u2000-\u200a\u202f\u205f\u3000]")
_LINE_END = re.compile("\r\n?|[\u0085\u2028\u2029]")
_INVISIBLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u2060\ufeff]")
# Possessive, and only after a character that is not blank: a run of a million blanks is read once.
_AT_LINE_END = re.compile(r"(?<![ \t])[ \t]++(?=\n|\Z)")
_EMPTY_LINES = re.compile(r"\n{3,}")


def nfc(text: str) -> str:
    """Return the canonical composition (Unicode Standard Annex 15)."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def fixed(text: str) -> str:
    """Fix mojibake, HTML entities, curly quotes, ligatures and full-width letters; apply NFC."""
    import ftfy

    return ftfy.fix_text(text)


def white_space(text: str) -> str:
    """Return the text with one kind of line end and of blank.

    Removes invisible characters, blanks at line ends, and all but one of several empty lines.
    Indentation and blanks within a line stay, since they carry meaning in code and tables.
    """
    text = _LINE_END.sub("\n", text)
    text = _INVISIBLE.sub("", _BLANK.sub(" ", text))
    text = _EMPTY_LINES.sub("\n\n", _AT_LINE_END.sub("", text))
    return text.strip("\n")

"""The conversion of docstring markup to prose.

Markup is removed or turned into words. Content that is not English prose (doctests, code blocks,
tables, formulas, licences) is left out and counted by reason.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable

ADMONITIONS = {
    "note",
    "warning",
    "tip",
    "important",
    "caution",
    "attention",
    "hint",
    "admonition",
    "rubric",
    "topic",
}

UNDERLINE = re.compile(r"""([=\-~^"*#+_`.:])\1{2,}\s*$""")
TABLE = re.compile(r"\s*(={2,}(\s+={2,})+|-{2,}(\s+-{2,})+|[+|][-=+|]{2,}|\|.*\|)\s*$")
DIRECTIVE = re.compile(r"(\s*)\.\. +([\w:-]+)::(?!\w)(.*)$")
COMMENT = re.compile(r"(\s*)\.\.(\s+(\[[^\]]+\]|_[^:]*:|\|)?.*)?$")
CODE_LINE = re.compile(
    r"\s*(import \w|from [\w.]+ import |def \w+\(|async def |class \w+[(:]|return\b.*[(\[=]|@\w+|\$ \S|[%#] ?\w+ ?|"
    r"(if|for|while|with|try|else|elif|except)\b.*:$|[\w.\[\], ]+ [-+*/|&]?= \S|[\w.]+\(.*\)$|[)\]}]+,?$|<\w+|#include)"
)
BULLET = re.compile(r"\s*([-*+•]|\(?(\d{1,2}|[a-z])[.)])\s+(?=\S)")
PLACEHOLDER = re.compile(r"%\([^)]*\)[sd]|\{[a-z_]\w*\}|<<\w+>>|\$\{?\w+\}?")

POINTER = re.compile(
    r"^read more in|^see the (guide|user guide|examples?)\b|user guide`? for|^for (an|some|more)? ?examples?\b|"
    r"\b(example|code|snippet|table|figure|listing|diagram|formula|equation)s? (shown |given )?(below|above)\b|"
    r"\b(below|following|above) (is an? |are )?(example|code|snippet|table|figure|listing|diagram|formula|equation)",
    re.I,
)
LICENCE = re.compile(
    r"permission is hereby granted|licensed under|all rights reserved|without warrant|redistribution|copyright|"
    r"SPDX-License|\(c\) ?(19|20)\d\d|terms of the .*licen[sc]e",
    re.I,
)
STOPWORDS = frozenset(
    re.findall(
        r"\w+",
        """the a an of to in is and for if or be that this with as on by are it not from when which will can at used
        return returns should may has have all set use using no any than was but one value its only do does must into
        get give each given whether whose default optional name names""",
    )
)
ABBREVIATION = re.compile(r"(\b(e\.g|i\.e|etc|vs|cf|resp|approx|fig|eq|eqs|al|no|ch|sec|ref|refs|vol|pp|dr|mr|prof|"
                          r"incl|[A-Z])|\.\.)\.$", re.I)  # fmt: skip
SENTENCE_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]*[A-Z0-9`_])""")


# -- lines


def indent(line: str) -> int:
    """Return the number of leading spaces."""
    return len(line) - len(line.lstrip(" "))


def strip_blocks(lines: list[str], dropped: Counter[str]) -> list[str]:
    """Remove doctests, fenced and literal blocks, directives, comments, tables and template
    placeholders.

    The content of notes and warnings stays, dedented. A paragraph that led to a removed block keeps
    its colon, by which `clean` finds and removes the dangling lead-in.
    """
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            dropped["code block"] += 1
            ends = (j for j in range(i + 1, len(lines)) if lines[j].strip().startswith(bare[:3]))
            i = next(ends, len(lines)) + 1
        elif bare.startswith((">>>", "In [", "Out[")):
            dropped["doctest"] += 1
            while i < len(lines) and lines[i].strip():
                i += 1
        elif match := DIRECTIVE.match(line):
            end = block_end(lines, i + 1, len(match[1]))
            name = match[2].lower()
            if name in ADMONITIONS:
                inner = inspect.cleandoc("\n".join(lines[i + 1 : end])).splitlines()
                while inner and re.match(r":[\w-]+:", inner[0]):
                    inner.pop(0)
                pad = match[1]
                title = [] if name in ("admonition", "rubric", "topic") else [match[3].strip()]
                content = [*title, *strip_blocks(inner, dropped)]
                out += ["", *(pad + text if text else "" for text in content), ""]
            else:
                known = name in ("math", "versionadded", "deprecated")
                dropped[f"directive {name}" if known else "directive"] += 1
                if out and out[-1].rstrip().endswith(":"):
                    out.append("")
            i = end
        elif COMMENT.match(line):
            i = block_end(lines, i + 1, indent(line))
        elif TABLE.match(line):
            dropped["table"] += 1
            while i < len(lines) and lines[i].strip():
                i += 1
        elif bare.endswith("::"):
            text = bare[:-2].rstrip()
            end = block_end(lines, i + 1, indent(line))
            dropped["code block"] += end > i + 1
            if text:
                out += [" " * indent(line) + text + ":", ""]
            i = end
        elif re.fullmatch(r"</?\w+[^>]*/?>|\[\[.*\]\]|</?Tip.*>", bare):
            i += 1
        elif re.fullmatch(r"(\{\w*\}|%\([^)]*\)s|<<\w+>>|%s)[.,]?", bare):
            dropped["placeholder"] += 1
            i += 1
        else:
            out.append(line)
            i += 1
    return out


def block_end(lines: list[str], start: int, level: int) -> int:
    """Return the index after a block indented deeper than `level`, without trailing blank lines."""
    end = last = start
    while end < len(lines) and (not lines[end].strip() or indent(lines[end]) > level):
        end += 1
        if lines[end - 1].strip():
            last = end
    return last


def paragraphs(lines: list[str]) -> list[list[str]]:
    """Return the groups of lines between blank lines; a list item starts a new group."""
    groups: list[list[str]] = [[]]
    for line in lines:
        if not line.strip():
            groups.append([])
        elif BULLET.match(line) and groups[-1]:
            groups.append([line])
        else:
            groups[-1].append(line)
    return [group for group in groups if group]


# -- inline markup


def target(match: re.Match[str]) -> str:
    """Return the visible text of a role or link."""
    text = match[1].strip()
    if titled := re.fullmatch(r"(.+?)\s*<[^>]*>", text, re.S):
        return titled[1]
    text, short = text.lstrip("~!."), text.startswith("~")
    return text.rsplit(".", 1)[-1] if short else re.sub(r"^_\w+\.(?=\w)", "", text)


INLINE: list[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]]] = [
    (re.compile(r"(?<![\w:]):[a-zA-Z][\w:+.-]*:`([^`]+)`", re.S), target),
    (re.compile(r"``(.+?)``", re.S), r"\1"),
    (re.compile(r"`(`?)([\w./ -]{1,30})'\1"), r"'\2'"),  # old quotes: `name'
    (re.compile(r"!?\[`([^`\]]+)`\](\([^)]*\))?"), target),
    (re.compile(r"!?\[([^\]\n]+)\]\((?:https?:|[./#])[^)\s]*\)"), r"\1"),
    (re.compile(r"`([^`<>]+?)\s*<[^>`]*>`__?"), r"\1"),
    (re.compile(r"\s*\[[\w#*+-]{1,12}\]_+"), ""),
    (re.compile(r"`([^`]+)`(__?\b)?"), target),
    (re.compile(r"\b[BCEGILMSUX]\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\*\*(\S[^*]*?\S|\S)\*\*(?!\w)"), r"\1"),
    (re.compile(r"(?<![\w*\\/])\*([^\s*,)][^*\n]*?[^\s*,(]|[^\s*,()])\*(?![\w*])"), r"\1"),
    (re.compile(r"</?(?:b|i|em|strong|code|tt|a|sup|sub|span)\b[^<>]*>"), ""),
    (re.compile(r"</?(?:p|br|ul|ol|li|Tip|div)\b[^<>]*>"), " "),
    (re.compile(r"\\([*_`|<>:'\"\[\]])"), r"\1"),
    (re.compile(r"\\\s"), ""),
    (re.compile(r"\s*[🤗`]\s*"), " "),
    (re.compile(r"\s*# ?(noqa|type: ignore|fmt: \w+)(: ?\w+)?"), ""),
    (re.compile(r"[‘’]"), "'"),
    (re.compile(r"[“”]"), '"'),
    (re.compile(r"\s\(\s*(see|cf\.?)?\s*\)"), ""),
    (re.compile(r"\s+"), " "),
    (re.compile(r" +([,;:)])(?=\s|$)"), r"\1"),
]


def inline(text: str) -> str:
    """Turn roles, emphasis, links and footnote marks into plain words with single spaces."""
    for pattern, replacement in INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()


def sentences(text: str) -> list[str]:
    """Split at sentence ends; abbreviations and initials do not end one."""
    out: list[str] = []
    start = 0
    for match in SENTENCE_END.finditer(text):
        if not ABBREVIATION.search(text[start : match.start()]):
            out.append(text[start : match.end()].strip())
            start = match.end()
    return [*out, text[start:].strip()] if text[start:].strip() else out


def clean(lines: list[str], dropped: Counter[str]) -> str:
    """Return a paragraph or list item as readable prose, or "" after counting the reason."""
    if sum(bool(CODE_LINE.match(line)) for line in lines) * 2 > len(lines):
        dropped["code block"] += 1
        return ""
    raw = " ".join(line.strip() for line in lines)
    bullet = BULLET.match(raw)
    text = inline(raw[bullet.end() :] if bullet else raw)
    kept = []
    for sentence in sentences(text):
        if reason := unreadable(sentence):
            dropped[reason] += 1
        else:
            kept.append(sentence)
    text = " ".join(kept)
    letters = sum(char.isalpha() for char in text)
    if len(re.findall(r"[A-Za-z]{2,}", text)) < (1 if bullet else 2) or letters < 0.6 * len(text):
        dropped["not prose"] += bool(text)
        return ""
    if len(re.findall(r"[{}()=;\[\]]", text)) > max(2, 0.1 * len(text)):
        dropped["code block"] += 1
        return ""
    return ("- " if bullet else "") + text


def unreadable(sentence: str) -> str:
    """Return why a sentence is not English prose, or ""."""
    if re.search(r"https?://|www\.|ftp://|\S@\S+\.\w", sentence):
        return "sentence with a link"
    if "\\" in sentence or "$" in sentence:
        return "sentence with a formula"
    if "::=" in sentence:
        return "grammar rule"
    if re.search(r">>>|http|(?<!:):\w+:(?=\w|`)|\.\. \w+::|::$|\|\w+\|", sentence):
        return "leftover markup"
    if PLACEHOLDER.search(sentence):
        return "placeholder"
    if POINTER.search(sentence):
        return "pointer to what is not here"
    if LICENCE.search(sentence):
        return "licence"
    if not english(sentence):
        return "not English"
    return ""


def english(text: str) -> bool:
    """Return whether a text is mostly ASCII and, if long, has common English words."""
    if sum(char > "\x7f" for char in text) > max(2, 0.04 * len(text)):
        return False
    words = re.findall(r"[a-z]+", text.lower())
    return len(words) < 14 or sum(word in STOPWORDS for word in words) >= 0.1 * len(words)


def prose(lines: list[str], dropped: Counter[str]) -> list[str]:
    """Return clean paragraphs; list items are joined, lead-ins to removed blocks are cut."""
    out: list[str] = []
    groups = paragraphs(lines)
    for group in groups:
        text = clean(group, dropped)
        if text.startswith("- ") and out:
            last = out[-1].rsplit("\n", 1)[-1]
            if last.startswith("- ") or last.endswith((":", ",")):
                out[-1] += "\n" + text
                continue
        if out and re.match(r"(but|and|or|where|which|with|then|for|is|are|to|in)\b", text):
            dropped["paragraph that goes on after a removed block"] += 1
            text = " ".join(sentences(text)[1:])
        if text:
            out.append(text)
    kept = []
    for text in out:
        if text.endswith((":", " e.g.", " i.e.", ",")):
            head, _, last = text.rpartition("\n")
            text = "\n".join(part for part in (head, " ".join(sentences(last)[:-1])) if part)
            dropped["dangling lead-in"] += 1
        if text.strip("- "):
            kept.append(text)
    return kept


def first_characters(parts: list[str], limit: int) -> str:
    """Return whole paragraphs, then whole sentences, up to `limit`; one paragraph a line."""
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

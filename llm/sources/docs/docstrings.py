"""The parser of docstrings (plain, reST fields, numpydoc, Google) into summary, body and fields."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from dataclasses import dataclass, field

from llm.sources.docs.prose import (
    UNDERLINE,
    block_end,
    indent,
    inline,
    prose,
    strip_blocks,
    unreadable,
)

SECTIONS = {
    "Parameters": "parameters params args arguments keyword-arguments keyword-args kwargs keyword-parameters inputs "
    "other-parameters optional-args optional-arguments input",
    "Attributes": "attributes attrs properties fields members",
    "Returns": "returns return yields yield output outputs",
    "Raises": "raises raise except exceptions",
    "Notes": "notes note warning warnings warns remarks description summary details background",
    "": "examples example usage references reference see-also seealso see todo shape methods routines citation "
    "citations author authors license copyright doctest demo benchmarks internals",
}
HEADINGS = {word: section for section, words in SECTIONS.items() for word in words.split()}
SIGNATURE = re.compile(r"[\w.]+ ?\((?:[^()]|\([^()]*\))*\) ?(->.*|=.*|:)?$")
GOOGLE_ITEM = re.compile(
    r"(?:[-*] )?`*(\*{0,2}[\w., *]{1,60}?)`*\s*(\((?:[^()]|\([^()]*\))*\))?\s*(?::| -- | - )\s*(.*)$"
)
SPHINX = re.compile(
    r"\s*[:@](param|parameter|arg|keyword|key|kwarg|type|ivar|cvar|var|return|returns|rtype|yields?|raises?|except|"
    r"exception|throws|see|seealso|note|since|author|todo|warning|vartype)\b *([^:]*):(.*)$"
)


@dataclass(frozen=True, slots=True)
class Field:
    """A described item; its kind is Parameters, Attributes, Returns or Raises."""

    kind: str
    name: str
    type: str
    text: str

    def line(self, types: bool = True) -> str:
        """Return the field as a line; without `types`, its type stands only in for a missing text."""
        head = f"{self.kind} {self.name}" if self.kind in ("Returns", "Raises") else self.name
        type_ = "" if self.kind == "Raises" or (self.text and not types) else self.type
        return f"{head.strip()}: " + ". ".join(part for part in (type_, self.text) if part)


@dataclass(slots=True)
class Doc:
    """A parsed docstring; paragraphs are single lines, except lists, which have one line an item."""

    summary: str = ""
    body: list[str] = field(default_factory=list)
    fields: list[Field] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def parse(docstring: str, dropped: Counter[str]) -> Doc:
    """Parse a docstring of any style; text that is left out is counted in `dropped` by reason."""
    lines = strip_blocks(inspect.cleandoc(docstring).splitlines(), dropped)
    while lines and (not lines[0].strip() or SIGNATURE.fullmatch(lines[0].strip())):
        lines.pop(0)
    doc = Doc()
    texts: list[str] = []
    for section, style, content in split_sections(lines):
        if section == "preamble":
            texts += prose(content, dropped)
        elif section == "Notes":
            doc.notes += prose(content, dropped)
        elif section == "Sphinx":
            sphinx_field(content, doc, dropped)
        elif section:
            doc.fields += fields(section, style, content, dropped)
        else:
            dropped["examples, references and see-also sections"] += 1
    doc.summary, doc.body = (texts[0], texts[1:]) if texts else ("", [])
    return doc


def split_sections(lines: list[str]) -> list[tuple[str, str, list[str]]]:
    """Split at headings and Sphinx fields into (section, style, lines); the first is "preamble"."""
    sections: list[tuple[str, str, list[str]]] = [("preamble", "text", [])]
    i = 0
    while i < len(lines):
        line, following = lines[i], lines[i + 1] if i + 1 < len(lines) else ""
        bare = line.strip()
        key = re.sub(r"\W+", "-", bare.rstrip(":").lower()).strip("-")
        if bare and UNDERLINE.match(following.strip()) and indent(line) == indent(following):
            if key in HEADINGS:
                sections.append((HEADINGS[key], "numpydoc", []))
            elif sections[-1][0] == "preamble":
                # A title of prose becomes a paragraph of its own.
                sections[-1][2].extend(["", bare.rstrip(".:") + ".", ""])
            else:
                sections.append(("Notes", "numpydoc", []))
            i += 2
        elif UNDERLINE.fullmatch(bare):
            i += 1
        elif bare.endswith(":") and key in HEADINGS and not bare[:1].islower():
            end = block_end(lines, i + 1, indent(line))
            if end == i + 1:  # the heading's block is not indented
                blanks = (j for j in range(i + 2, len(lines)) if not lines[j].strip())
                end = next(blanks, len(lines))
            sections.append((HEADINGS[key], "google", lines[i + 1 : end]))
            sections.append(("preamble" if HEADINGS[key] else "Notes", "text", []))
            i = end
        elif SPHINX.match(line):
            end = i + 1
            while end < len(lines) and lines[end].strip() and not SPHINX.match(lines[end]):
                end += 1
            if end < len(lines) - 1 and not lines[end].strip():
                end = max(end, block_end(lines, end, indent(line)))
            sections.append(("Sphinx", "sphinx", lines[i:end]))
            sections.append(("Notes", "text", []))
            i = end
        else:
            sections[-1][2].append(line)
            i += 1
    return sections


def fields(kind: str, style: str, lines: list[str], dropped: Counter[str]) -> list[Field]:
    """Return the described items of a numpydoc or Google section."""
    text = inspect.cleandoc("\n".join(["", *lines])).splitlines()
    items: list[list[str]] = []
    for line in text:
        if line.strip() and not indent(line):
            items.append([line])
        elif items:
            items[-1].append(line)
    flat = not any(indent(line) for line in text if line.strip())
    if kind == "Returns" and items and (flat or style == "google"):  # prose, perhaps after "type:"
        typed = re.match(r"`*([\w.\[\], |]+)`*:\s+(?=\S)", text[0])
        rest = [text[0][typed.end() :] if typed else text[0], *dedent(text[1:])]
        return field_of(kind, "", typed[1] if typed else "", rest, dropped)
    out = []
    for head, *rest in items:
        match = GOOGLE_ITEM.match(head)
        if style == "numpydoc" and any(line.strip() for line in rest):
            head = inline(head)
            name, _, type_ = head.partition(" : ") if " : " in head else head.partition(":")
            first = ""
            if kind == "Returns" and not type_:
                name, type_ = "", name
        elif match and (style == "google" or (" : " not in head and len(head.split()) > 4)):
            name, type_, first = match[1], (match[2] or "")[1:-1], match[3]
        else:
            dropped["field without a description"] += 1
            continue
        out += field_of(kind, name, type_, [first, *dedent(rest)], dropped)
    return out


def dedent(lines: list[str]) -> list[str]:
    """Return continuation lines without their common indentation."""
    return inspect.cleandoc("\n".join(["", *lines])).splitlines()


def field_of(
    kind: str, name: str, type_: str, lines: list[str], dropped: Counter[str]
) -> list[Field]:
    """Return a field with a valid name and a readable text in a list; else count why not."""
    name = inline(name).strip(" :*")
    type_ = inline(type_).strip(" .,;:")
    parts = prose(lines, dropped)
    ended = [part if part[-1] in ".:;!?" else f"{part}." for part in parts[:-1]]
    text = " ".join([*ended, *parts[-1:]]).strip().removeprefix("- ")
    text = re.sub(r"[,;]?\s(?:- |\n- )(?=\S)", "; ", text) if "\n- " in text else text
    text = re.sub(r"([:.!?]);", r"\1", text).strip()
    type_ = "" if unreadable(type_) or len(type_) > 90 else type_
    named = kind == "Returns" or re.fullmatch(r"[\w.]+(, \*{0,2}[\w.]+){0,3}", name)
    if name.startswith("_") or not named:
        dropped["field without a name"] += 1
    elif len(text) < 8:
        dropped["field without a description"] += 1
    else:
        if re.match(r"[a-z]+('s)?[ ,]", text):
            text = text[0].upper() + text[1:]
        return [Field(kind, name, type_, text)]
    return []


def sphinx_field(lines: list[str], doc: Doc, dropped: Counter[str]) -> None:
    """Add a `:param x: …` field to the doc."""
    match = SPHINX.match(lines[0])
    assert match is not None
    tag, argument, first = match[1], match[2].strip(), match[3]
    content = [first.strip(), *dedent(lines[1:])]
    if tag in ("param", "parameter", "arg", "keyword", "key", "kwarg", "ivar", "cvar", "var"):
        type_, _, name = argument.rpartition(" ")
        kind = "Attributes" if tag in ("ivar", "cvar", "var") else "Parameters"
        doc.fields += field_of(kind, name, type_, content, dropped)
    elif tag in ("return", "returns", "yield", "yields"):
        doc.fields += field_of("Returns", "", "", content, dropped)
    elif tag in ("raise", "raises", "except", "exception", "throws"):
        doc.fields += field_of("Raises", argument, "", content, dropped)
    elif tag in ("note", "warning"):
        doc.notes += prose(content, dropped)

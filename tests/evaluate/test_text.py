"""The stated rules for sentences and words."""

from __future__ import annotations

import pytest

from llm.evaluate.text import sentences, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Uses e.g. NumPy, i.e. Arrays, cf. Harris. Done.", ["Uses e.g. NumPy, i.e. Arrays, cf. Harris.", "Done."]),
        ("By J. Smith. Version 1.2 is out.", ["By J. Smith.", "Version 1.2 is out."]),
        ('He said "Stop." Then left.', ['He said "Stop."', "Then left."]),
        ("wrapped\nover lines.\n\nA paragraph", ["wrapped\nover lines.", "A paragraph"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_sentences_end_where_the_rule_says(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_line_breaks_end_sentences_where_asked() -> None:
    assert sentences("first line\nsecond line. Third", lines=True) == ["first line", "second line.", "Third"]


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("The `axis` (int), “Über”-large_value!") == ["the", "axis", "int", "über", "large_value"]

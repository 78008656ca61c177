"""The stated rules for sentences and words."""

from __future__ import annotations

import pytest

from llm.text.sentences import RougeTokenizer, sentences, words, writing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        (
            "Uses e.g. NumPy, i.e. Arrays, cf. Harris. Done.",
            ["Uses e.g. NumPy, i.e. Arrays, cf. Harris.", "Done."],
        ),
        ("By J. Smith. Version 1.2 is out.", ["By J. Smith.", "Version 1.2 is out."]),
        ('He said "Stop." Then left.', ['He said "Stop."', "Then left."]),
        ("wrapped\nover lines.\n\nA paragraph", ["wrapped\nover lines.", "A paragraph"]),
        (
            "Мама мыла раму. Папа спал! «Да», 5 лет.",
            ["Мама мыла раму.", "Папа спал!", "«Да», 5 лет."],
        ),
        ("天气很好。我们去玩！“好。”他说", ["天气很好。", "我们去玩！", "“好。”", "他说"]),
        ("वह घर गया। फिर सोया।", ["वह घर गया।", "फिर सोया।"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_sentences_end_where_the_rule_says(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_line_breaks_end_sentences_where_asked() -> None:
    assert sentences("first line\nsecond line. Third", lines=True) == [
        "first line",
        "second line.",
        "Third",
    ]


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert words("The `axis` (int), “Über”-large_value!") == [
        "the",
        "axis",
        "int",
        "über",
        "large_value",
    ]


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (["An array of shape (n,).", "It is 3 µs."], "latin"),
        (["", "1 2 3"], "latin"),
        (["Мама мыла раму"], "words"),
        (["Cet été, la forêt a brûlé."], "latin"),
        (["The α of it " * 9, "is small " * 199], "latin"),
        (["हिन्दी में", "우리는 학교에"], "words"),
        (["今天天气很好"], "chinese"),
        (["A long English reference among others " * 3, "今天天气很好"], "chinese"),
        (["今日はとても天気がいい"], "characters"),
        (["วันนี้อากาศดี"], "characters"),
    ],
)
def test_the_references_say_how_a_test_set_is_written(references: list[str], expected: str) -> None:
    assert writing([[reference] for reference in references]) == expected


def test_tokens_of_rouge_are_words_stems_and_characters_of_scripts_without_spaces() -> None:
    found = RougeTokenizer().tokenize("Running_fast: ПРИВЕТ, мир! 天气 is naïve; हिन्दी, ที่")
    assert found == ["run", "fast", "привет", "мир", "天", "气", "is", "naïve", "हिन्दी", "ที่"]

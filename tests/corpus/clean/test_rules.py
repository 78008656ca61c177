"""Each cleaning rule does what its name says, to what it is for, and to nothing else."""

from __future__ import annotations

import pickle
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.corpus.clean import unicode as normalise
from llm.corpus.clean.report import Tally, on
from llm.corpus.clean.rules import Cleaned, Cleaner
from llm.errors import UserError
from llm.params import Clean, FilesSource
from llm.sources import raw
from llm.sources.download import write_raw

PROSE = (
    "The harbour was quiet that morning, and the boats that had come in with the tide lay close to the wall. "
    "An old man sat on a crate and mended a net. He did not look up when the girl came down the steps with her bread. "
    "She sat beside him, as she did on most days, and they watched the gulls until the bell rang for school.\n"
    "In the afternoon the wind turned. The men who have families went home early, and those with none stood about. "
    "Nobody spoke of the ship, which was to be back before the end of the month, but everybody thought of it."
)
GERMAN = (
    "Der Hafen war an diesem Morgen ruhig, und die Boote lagen dicht an der Mauer, als die Flut gekommen war. "
    * 3
)
SYMBOLS = "".join(f"{word} {'#' if i % 4 == 0 else ''} " for i, word in enumerate(PROSE.split()))
LINES = [f"Line {i} is here to say that the {word} stays." for i, word in enumerate(PROSE.split())]


def clean(text: str, **params: Any) -> Cleaned:
    return Cleaner(Clean(**params))(text)


REMOVED: list[tuple[str, Any, str]] = [
    ("min_characters", 600, PROSE),
    ("max_characters", 300, PROSE),
    ("languages", ["de", "fr"], PROSE),
    ("languages", ["en"], GERMAN),
    ("gopher_quality.min_doc_words", 200, PROSE),
    ("gopher_quality.min_doc_words", 1, "... !!! ###"),
    ("gopher_quality.max_doc_words", 50, PROSE),
    ("gopher_quality.min_avg_word_length", 3, "a an it of " * 30),
    ("gopher_quality.max_avg_word_length", 10, "incomprehensibilities unquestionably " * 30),
    ("gopher_quality.max_symbol_word_ratio", 0.1, SYMBOLS),
    ("gopher_quality.max_symbol_word_ratio", 0.1, SYMBOLS.replace("#", "...")),
    ("gopher_quality.max_bullet_lines_ratio", 0.9, "\n".join(f"- {line}" for line in LINES)),
    (
        "gopher_quality.max_ellipsis_lines_ratio",
        0.3,
        "\n".join(f"{line[:-1]}..." for line in LINES),
    ),
    ("gopher_quality.min_alpha_words_ratio", 0.8, "price 12 13 14 " * 30),
    ("gopher_quality.min_alpha_words_ratio", 0.8, "!!! ... ###"),
    ("gopher_quality.min_stop_words", 2, "red blue green yellow black white " * 20),
    ("gopher_repetition.dup_line_frac", 0.3, "\n".join(["Read more here."] * 30 + LINES[:40])),
    ("gopher_repetition.dup_para_frac", 0.3, "\n\n".join(["Read more here."] * 30 + LINES[:40])),
    (
        "gopher_repetition.dup_line_char_frac",
        0.2,
        "\n".join([PROSE.replace("\n", " ")] * 3 + LINES[:20]),
    ),
    ("gopher_repetition.dup_para_char_frac", 0.2, "\n\n".join([PROSE] * 3 + LINES[:20])),
    ("gopher_repetition.top_n_grams", [[2, 0.2]], "buy shoes " * 20 + PROSE),
    ("gopher_repetition.dup_n_grams", [[5, 0.15]], PROSE + " " + PROSE),
    ("c4.filter_lorem_ipsum", True, PROSE + " Lorem ipsum dolor sit amet."),
    ("c4.filter_curly_bracket", True, PROSE + " function () { return 1; }"),
    ("c4.min_num_sentences", 5, "Only one sentence. And a second one."),
]


@pytest.mark.parametrize(("rule", "value", "text"), REMOVED, ids=[rule for rule, _, _ in REMOVED])
def test_a_rule_removes_what_it_names_and_keeps_prose(rule: str, value: Any, text: str) -> None:
    section, _, name = rule.rpartition(".")
    params = {section: {name: value}} if section else {rule: value}
    found = clean(text, **params)
    assert (found.text, found.removed, found.seen) == (None, rule, text)
    assert clean(text) == Cleaned(text, None, {})
    if text is not PROSE:
        assert clean(PROSE, **params).text == PROSE
    assert on(Clean(**params))[0] == rule


@pytest.mark.parametrize(
    ("rule", "value", "line"),
    [
        ("filter_no_terminal_punct", True, "About us | Contact | Imprint"),
        ("filter_no_terminal_punct", True, "The text is cut off at this ..."),
        ("min_words_per_line", 3, "Read more."),
        (
            "max_word_length",
            30,
            "A link to https://example.com/a/very/long/address/of/a/page.html is here.",
        ),
        ("filter_javascript", True, "Please turn on JavaScript in your browser."),
        ("filter_policy", True, "This site uses cookies to serve you better."),
    ],
)
def test_a_rule_for_lines_takes_out_the_line_and_counts_it(
    rule: str, value: Any, line: str
) -> None:
    first, second = PROSE.split("\n")
    found = clean(f"{first}\n{line}\n{second}", c4={rule: value})
    assert found.text == PROSE
    assert found.edits is not None
    assert {name: edit.number for name, edit in found.edits.items()} == {f"c4.{rule}": 1}
    assert clean(PROSE, c4={rule: value}) == Cleaned(PROSE, None, {})


def test_citation_marks_are_taken_out_and_other_brackets_stay() -> None:
    found = clean(
        "It rained[1] for days.[citation needed] See [a] and x[10].", c4={"remove_citations": True}
    )
    assert found.text == "It rained for days. See [a] and x."
    assert found.edits is not None
    assert found.edits["c4.remove_citations"].number == 3


MASK = {"email": True, "phone": "US", "ip": True}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Write to jane.doe+x@mail.example.co.uk, please.", "Write to email@example.com, please."),
        ("a@b and user@localhost stay", "a@b and user@localhost stay"),
        ("Call (213) 365-3500 or +49 30 901820 today", "Call 555-0100 or 555-0100 today"),
        ("In 1990-2000, 12 of 345 on 2024-11-21 10:30:45", "In 1990-2000, 12 of 345 on 2024-11-21 10:30:45"),
        ("Host 8.8.8.8, port 53.", "Host 192.0.2.1, port 53."),
        ("192.168.0.1, 10.0.0.1 and 127.0.0.1 are private", "192.168.0.1, 10.0.0.1 and 127.0.0.1 are private"),
        ("Section 1.2.3.4.5 and 300.1.2.3", "Section 1.2.3.4.5 and 300.1.2.3"),
        ("Host 2001:4860:4860::8888 answers", "Host 2001:db8::1 answers"),
        ("std::vector and fe80::1 at 12:30:45", "std::vector and fe80::1 at 12:30:45"),
    ],
)  # fmt: skip
def test_personal_data_is_masked_and_what_only_looks_like_it_stays(text: str, masked: str) -> None:
    found = clean(text, personal_data=MASK)
    assert found.text == masked
    assert bool(found.edits) == (text != masked)
    assert clean(masked, personal_data={"email": True, "ip": True}).text == masked


@pytest.mark.parametrize("text", ["a." * 500_000, "a@" * 300_000, "1.2." * 200_000, "1:" * 300_000, "- " * 500_000,
                                  " " * 1_000_000 + "x", "\n" * 1_000_000, "12 " * 100_000])  # fmt: skip
def test_a_long_run_of_anything_takes_time_in_proportion(text: str) -> None:
    began = time.process_time()  # which other processes do not lengthen
    clean(text, personal_data={"email": True, "ip": True}, whitespace=True, unicode="nfc")
    assert time.process_time() - began < 5


def test_unicode_is_composed_or_mended() -> None:
    decomposed = unicodedata.normalize("NFD", "café")
    assert clean(decomposed, unicode="nfc").text == "café"
    assert clean("schÃ¶n &amp; “gut”", unicode="ftfy").text == 'schön & "gut"'
    assert clean("schÃ¶n", unicode="nfc").text == "schÃ¶n"


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_white_space_is_written_in_one_way_and_nothing_visible_is_lost(text: str) -> None:
    once = normalise.white_space(text)
    assert normalise.white_space(once) == once
    assert "\r" not in once
    assert "\n\n\n" not in once
    assert not any(line.endswith((" ", "\t")) for line in once.split("\n"))

    def visible(value: str) -> str:
        return "".join(
            c for c in value if c.isprintable() and not c.isspace() and c not in "\u00ad\u180e"
        )

    assert visible(once) == visible(text)


def test_indentation_and_blanks_within_lines_stay() -> None:
    code = "def f(x):\n    if x:\n\n        return  1"
    assert normalise.white_space(code.replace("\n", "  \r\n")) == code


def test_a_cleaner_can_be_pickled_and_gives_the_same_in_another_process() -> None:
    params = Clean(
        unicode="ftfy", languages=["en"], personal_data=MASK, c4={"min_num_sentences": 2}
    )
    cleaner = Cleaner(params)
    before = [cleaner(text) for text in (PROSE, GERMAN, "short")]
    again = pickle.loads(pickle.dumps(cleaner))  # noqa: S301 - our own bytes
    assert [again(text) for text in (PROSE, GERMAN, "short")] == before


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("ab. \n#{1-@é\u200b"), min_size=1, max_size=120))
def test_any_text_has_a_verdict_from_all_rules_together(text: str) -> None:
    found = ALL(text)
    assert (found.text is None) == (found.removed is not None)
    assert found.text is None or found.text.strip()
    assert ALL(text) == found


ALL = Cleaner(
    Clean(
        unicode="ftfy",
        whitespace=True,
        personal_data=MASK,
        gopher_quality={
            "max_avg_word_length": 20,
            "max_symbol_word_ratio": 0.9,
            "max_bullet_lines_ratio": 0.9,
        },
        gopher_repetition={
            "dup_line_frac": 0.9,
            "top_n_grams": [[2, 0.9]],
            "dup_n_grams": [[5, 0.9]],
        },
        c4={"min_words_per_line": 1, "remove_citations": True},
    )
)


def test_unknown_languages_and_regions_are_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"tokenize.clean.languages: xx is not a language"):
        Cleaner(Clean(languages=["en", "xx"]))
    with pytest.raises(UserError, match=r"personal_data.phone: XX is no region"):
        Cleaner(Clean(personal_data={"phone": "XX"}))


def test_tallies_of_parts_add_up_to_that_of_the_whole_and_show_no_personal_data() -> None:
    params = Clean(min_characters=20, personal_data={"email": True}, max_characters=1000)
    texts = [
        f"Write to person{i}@example.org if you like." if i % 3 else f"no {i}" for i in range(60)
    ]
    cleaner, whole, parts = Cleaner(params), Tally(), [Tally(), Tally()]
    for index, text in enumerate(texts):
        whole.add(index, text, cleaner(text))
        parts[index >= 25].add(index, text, cleaner(text))
    parts[0].merge(parts[1])
    found = whole.metrics(params)
    assert parts[0].metrics(params) == found
    assert (found["documents"], found["kept"]) == (60, 40)
    assert found["bytes"] == sum(map(len, texts))
    assert list(found["rules"]) == ["personal_data.email", "min_characters", "max_characters"]
    masked, short, long = found["rules"].values()
    assert (masked["changed"], masked["edits"], masked["removed"]) == (40, 40, 0)
    assert (short["removed"], short["removed_bytes"]) == (
        20,
        sum(len(t) for t in texts if len(t) < 20),
    )
    assert [example["document"] for example in short["examples"]] == [0, 3, 6, 9, 12]
    assert long["removed"] == 0
    assert "person" not in str(masked["examples"])


def test_real_prose_passes_the_rules_of_gopher_and_a_crawl_loses_some(
    data_dir: Path, tmp_path: Path
) -> None:
    quality = {
        "min_doc_words": 50,
        "max_symbol_word_ratio": 0.1,
        "min_alpha_words_ratio": 0.8,
        "min_stop_words": 2,
    }
    cleaner = Cleaner(Clean(languages=["en"], gopher_quality=quality))
    kept = {}
    for name in ("TinyStories-train.txt", "c4.jsonl.gz"):
        write_raw("pretrain", "pretrain", FilesSource(source="files", paths=[str(data_dir / "pretrain" / name)]),
                  tmp_path / name)  # fmt: skip
        found = [cleaner(record["text"]).removed is None for record in raw.read(tmp_path / name)]
        kept[name] = sum(found) / len(found)
    assert kept["TinyStories-train.txt"] > 0.99
    assert 0.9 < kept["c4.jsonl.gz"] < 1

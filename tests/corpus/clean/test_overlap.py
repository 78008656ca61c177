"""Lines that training text shares with held-out text are cut, and no others."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from llm.corpus.clean.overlap import lowest, shared_lines, without_lines
from llm.text.ngrams import Grams, words

N = 3
LINE = st.lists(st.sampled_from("abcd"), max_size=5).map(" ".join)
TEXT = st.lists(LINE, min_size=1, max_size=6).map("\n".join)


def runs(text: str) -> set[tuple[str, ...]]:
    line = words(text)
    return {tuple(line[i : i + N]) for i in range(len(line) - N + 1)}


def grams(texts: list[str]) -> Grams:
    out = Grams(N)
    for text in texts:
        out.add(text)
    return out


@settings(max_examples=60, deadline=None)
@given(TEXT, st.lists(TEXT, max_size=3))
def test_the_rest_shares_no_run_and_every_cut_line_did(text: str, held_out: list[str]) -> None:
    wanted = set().union(*map(runs, held_out)) if held_out else set()
    numbers = shared_lines(text, grams(held_out))
    rest = without_lines(text, numbers)
    assert not runs(rest) & wanted
    # Line by line: each pass cuts the lines that hold words of a shared run, until there is none.
    left = list(enumerate(text.split("\n")))
    while True:
        owner = [number for number, line in left for _ in words(line)]
        line = [word for _, part in left for word in words(part)]
        hit = {
            owner[i + j]
            for i in range(len(line) - N + 1)
            if tuple(line[i : i + N]) in wanted
            for j in range(N)
        }
        if not hit:
            break
        left = [(number, part) for number, part in left if number not in hit]
    assert set(numbers) == {*range(len(text.split("\n")))} - {number for number, _ in left}
    assert words(rest) == [word for _, part in left for word in words(part)]


def test_lines_that_a_cut_brings_together_are_compared_too() -> None:
    held_out = grams(["one two three four", "end of it begins"])
    assert shared_lines("the end of\none two three\nit begins here", held_out) == [0, 1, 2]
    assert shared_lines("the end\none two three\nbegins here", held_out) == [1]


def test_a_text_without_cut_lines_keeps_its_paragraphs_and_its_bytes() -> None:
    text = "first\n\ncut\n\nlast\n\n\nafter two\n"
    assert without_lines(text, []) == text
    assert without_lines(text, [2]) == "first\n\nlast\n\n\nafter two"
    assert without_lines("cut\n\nrest", [0]) == "rest"
    assert without_lines("rest\n\ncut", [2]) == "rest"
    assert without_lines("cut", [0]) == ""


def test_of_many_held_out_documents_those_with_the_lowest_hashes_are_compared_with() -> None:
    texts = [(7, "seven"), (1, "one"), (9, "nine"), (3, "three")]
    assert lowest(iter(texts), limit=100) == (["one", "three", "seven", "nine"], 4)
    assert lowest(iter(texts), limit=9) == (["one", "three"], 4)

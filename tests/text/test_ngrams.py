"""Shared runs of words are found exactly, whatever the hash and wherever the texts are cut."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.text import ngrams
from llm.text.ngrams import Grams, words

TEXT = st.lists(st.sampled_from("abcd"), max_size=25).map(" ".join)


def plain(text: str, n: int) -> set[tuple[str, ...]]:
    found = words(text)
    return {tuple(found[i : i + n]) for i in range(len(found) - n + 1)}


@settings(max_examples=200, deadline=None)
@given(
    wanted=st.lists(TEXT, max_size=6),
    others=st.lists(TEXT, max_size=6),
    n=st.integers(1, 14),
    weak=st.booleans(),
)
def test_the_owners_of_shared_runs_are_those_of_plain_sets_even_where_hashes_collide(
    wanted: list[str], others: list[str], n: int, weak: bool
) -> None:
    original = ngrams.runs
    if weak:  # every hash is one of four
        ngrams.runs = lambda numbers, n: original(numbers, n) & np.uint64(3)  # type: ignore[assignment]
    try:
        grams = Grams(n)
        for owner, text in enumerate(wanted):
            grams.add(text, owner)
        seen = np.zeros(len(grams), dtype=bool)
        seen[grams.find(grams.number(others))] = True
        assert len(grams) == len(set().union(*(plain(text, n) for text in wanted)))
        there = set().union(*(plain(text, n) for text in others))
        assert grams.owners(seen) == {i for i, text in enumerate(wanted) if plain(text, n) & there}
        for text in others:
            assert grams.contains_any(text) == any(plain(text, n) & plain(one, n) for one in wanted)
    finally:
        ngrams.runs = original


@pytest.mark.parametrize("n", [1, 2, 3, 12, 13, 14, 16])
def test_equal_runs_have_equal_hashes_and_others_do_not(n: int) -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 3, size=5000).astype(np.int32)
    hashes = ngrams.runs(numbers, n)
    tuples = [tuple(numbers[i : i + n].tolist()) for i in range(len(numbers) - n + 1)]
    assert len(hashes) == len(tuples)
    assert (
        len(set(hashes.tolist()))
        == len(set(tuples))
        == len(set(zip(tuples, hashes.tolist(), strict=True)))
    )


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from("abΣσ'İß_1 .\n\u00a0"), max_size=60), size=st.integers(1, 20))
def test_a_long_text_has_the_words_of_the_whole_wherever_it_is_cut(text: str, size: int) -> None:
    before, ngrams.PIECE = ngrams.PIECE, size
    try:
        parts, found = list(ngrams.pieces(text)), list(ngrams.iter_words(text))
    finally:
        ngrams.PIECE = before
    assert "".join(parts) == text
    if not re.search(rf"\S{{{size}}}", text):  # a run of so many characters is cut where it is
        assert found == words(text)


def test_texts_after_the_first_look_are_refused() -> None:
    grams = Grams()
    assert not grams.contains_any("nothing to find")
    with pytest.raises(ValueError, match="before others are compared"):
        grams.add("late")

"""Every encoder gives tiktoken's ids, whatever the text, however it is cut, and whatever it
remembers.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.tokenizer import gigatoken_encoder, split_points, word_cache
from llm.tokenizer.bpe import GPT2_PATTERN, PATTERN, Tokenizer
from llm.tokenizer.encoders import Encoder, Plain, make_encoder
from llm.tokenizer.word_cache import Words

TEXTS = [
    f"The array's {i}th value isn't 'some (x, y) -> None:\n    return f(x)[{i * 7919}] \n\n* é中 “a” a\u00a0b end.\n"
    for i in range(400)
]
CHARACTERS = "abcXYZ019.,'-(_<|>é中😀\x00\x1c\x7f \n\t\x85\xa0\u2003\u200b\u3000\ufeff"
SNIPPETS = [
    "'s",
    "'ll",
    "'re",
    "don't",
    "'some",
    " the",
    " array",
    "value",
    "12345",
    "...\n",
    "é ",
    "\xa0 ",
    "\r\n",
    "  ",
    "\n\n",
]
PIECES = st.sampled_from([*CHARACTERS, *SNIPPETS, "<|endoftext|>"])
tricky = st.lists(PIECES | st.characters(exclude_categories=["Cs"]), max_size=40).map("".join)


@pytest.fixture(scope="module")
def ranks() -> dict[bytes, int]:
    return Tokenizer.train(TEXTS, 1000).ranks


@pytest.fixture(scope="module", params=[PATTERN, GPT2_PATTERN], ids=["ours", "gpt2"])
def tokenizer(request: pytest.FixtureRequest, ranks: dict[bytes, int]) -> Tokenizer:
    return Tokenizer(ranks, request.param)


@pytest.fixture(scope="module")
def encoder(tokenizer: Tokenizer) -> Encoder:
    return Words(tokenizer)


@pytest.fixture(scope="module")
def giga(ranks: dict[bytes, int]) -> Encoder:
    if not importlib.util.find_spec("gigatoken"):
        pytest.skip("needs the extra `fast`")
    return make_encoder(Tokenizer(ranks, GPT2_PATTERN))


def same(encoder: Encoder, tokenizer: Tokenizer, texts: list[str]) -> bool:
    ids, counts = encoder.encode(pa.array(texts, pa.string()))
    assert (ids.dtype, len(counts)) == (np.uint16, len(texts))
    expected = [tokenizer.encode(text) for text in texts]
    return counts.tolist() == [len(each) for each in expected] and ids.tolist() == [
        i for each in expected for i in each
    ]


@given(texts=st.lists(tricky, max_size=6))
@settings(max_examples=300, deadline=None)
def test_words_are_tiktokens_ids(texts: list[str], encoder: Encoder, tokenizer: Tokenizer) -> None:
    assert same(encoder, tokenizer, texts)


@given(texts=st.lists(tricky, max_size=6))
@settings(max_examples=300, deadline=None)
def test_gigatoken_has_tiktokens_ids(
    texts: list[str], giga: Encoder, ranks: dict[bytes, int]
) -> None:
    assert same(giga, Tokenizer(ranks, GPT2_PATTERN), texts)


@given(text=tricky)
@settings(max_examples=400, deadline=None)
def test_a_text_may_be_cut_where_cuts_says(text: str, tokenizer: Tokenizer) -> None:
    data = text.encode()
    for place in np.flatnonzero(split_points.cuts(data)):
        parts = data[:place].decode(), data[place:].decode()
        assert tokenizer.encode(parts[0]) + tokenizer.encode(parts[1]) == tokenizer.encode(text), (
            parts
        )


def test_prose_is_cut_into_words() -> None:
    text = b"It isn't (so) far.\n\nNext: x_y.1 = 'a b'"
    pieces = np.split(np.frombuffer(text, np.uint8), np.flatnonzero(split_points.cuts(text)))
    assert [bytes(piece) for piece in pieces] == [
        *(
            b"It",
            b" isn",
            b"'t",
            b" (",
            b"so",
            b")",
            b" far",
            b".\n\nNext",
            b":",
            b" x",
            b"_y",
            b".",
            b"1",
            b" =",
        ),
        *(b" '", b"a", b" b", b"'"),
    ]


def test_every_code_point_keeps_its_ids_in_every_place(
    encoder: Encoder, tokenizer: Tokenizer
) -> None:
    codes = [
        *range(0xD800),
        *range(0xE000, 0x11000),
        *range(0x1F300, 0x1F700),
        *range(0xE0000, 0xE0200),
    ]
    texts = [
        "".join(f"a{c}1{c}.{c} {c}b {c}{c} '{c}s{c} x" for c in map(chr, codes[i : i + 64]))
        for i in range(0, len(codes), 64)
    ]
    assert same(encoder, tokenizer, texts)


def test_every_code_point_keeps_its_ids_with_gigatoken(
    giga: Encoder, ranks: dict[bytes, int]
) -> None:
    codes = [
        *range(0xD800),
        *range(0xE000, 0x11000),
        *range(0x1F300, 0x1F700),
        *range(0xE0000, 0xE0200),
    ]
    assert same(
        giga,
        Tokenizer(ranks, GPT2_PATTERN),
        [f"a{c}1{c}.{c} {c}b {c}{c} '{c}s{c} x" for c in map(chr, codes)],
    )


@pytest.mark.parametrize("run", [" ", "\n", " \n", "\u3000", "a", "1", "-", "中"])
@pytest.mark.parametrize("length", [60_000, 65_536, 65_537, 200_000])
def test_long_runs_keep_their_ids(
    run: str, length: int, encoder: Encoder, tokenizer: Tokenizer
) -> None:
    assert same(encoder, tokenizer, ["before " + run * (length // len(run)) + "after"])


def test_long_runs_keep_their_ids_with_gigatoken(giga: Encoder, ranks: dict[bytes, int]) -> None:
    texts = [
        f"x{run * n}y"
        for run in (" ", "\n", "\u3000", " \n", "a")
        for n in (49_152, 65_535, 65_536, 65_537, 150_000)
    ]
    assert same(giga, Tokenizer(ranks, GPT2_PATTERN), texts)


@pytest.mark.parametrize("window", [16, 100, 1000])
def test_windows_change_no_id(
    window: int, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_points, "WINDOW", window)
    texts = [*TEXTS[:30], "", "é中" * 300, "".join(TEXTS[:20]), " " * 3000, "x" * 3000, ""]
    assert same(Words(tokenizer), tokenizer, texts)


def test_a_long_document_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_points, "WINDOW", 1000)
    text = "".join(TEXTS).encode()
    bounds = [
        bounds for _, bounds in split_points.windows(memoryview(text), np.array([0, len(text)]))
    ]
    assert max(b[-1] - b[0] for b in bounds) <= 1000
    assert [b[0] for b in bounds[1:]] == [b[-1] for b in bounds[:-1]]


@pytest.mark.parametrize("setting", ["KEPT_WORDS", "KEPT_BYTES"])
def test_forgetting_words_changes_no_id(
    setting: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(word_cache, setting, 50)
    monkeypatch.setattr(split_points, "WINDOW", 500)
    encoder = Words(tokenizer)
    held = []
    for start in range(0, 200, 10):
        assert same(encoder, tokenizer, TEXTS[start : start + 10])
        held.append(len(encoder.words))
    forgetful = len(encoder.words)
    monkeypatch.undo()
    encoder = Words(tokenizer)
    encoder.encode(pa.array(TEXTS[:200]))
    assert len(encoder.words) > 2 * max(held)
    assert forgetful <= max(held) < 150


def test_gigatoken_begins_anew_when_the_process_has_grown(
    giga: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gigatoken_encoder, "LOOK_EVERY", 1000)
    giga.grown = 0  # type: ignore[attr-defined]
    before = giga.fast  # type: ignore[attr-defined]
    assert same(giga, giga.tokenizer, TEXTS)  # type: ignore[attr-defined]
    assert giga.fast is not before  # type: ignore[attr-defined]
    assert giga.grown > gigatoken_encoder.CACHE_BYTES  # type: ignore[attr-defined]


def test_the_encoder_is_chosen_by_pattern_and_param(
    ranks: dict[bytes, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, gpt2, others = (
        Tokenizer(ranks, pattern) for pattern in (PATTERN, GPT2_PATTERN, r"\S+|\s+")
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert [make_encoder(each).name for each in (ours, gpt2, others)] == [
        "words",
        "words",
        "tiktoken",
    ]
    assert make_encoder(ours, "tiktoken").name == "tiktoken"
    assert same(make_encoder(others), others, TEXTS[:20])
    assert same(Plain(ours), ours, ["", *TEXTS[:20], "<|endoftext|>"])


def test_slices_and_large_strings_are_read_where_they_are(
    encoder: Encoder, tokenizer: Tokenizer
) -> None:
    for kind in (pa.string(), pa.large_string()):
        ids, counts = encoder.encode(pa.array(TEXTS, kind)[3:9])
        assert ids.tolist() == [i for text in TEXTS[3:9] for i in tokenizer.encode(text)]
        assert len(counts) == 6
    with pytest.raises(ValueError, match="null"):
        encoder.encode(pa.array(["a", None]))


@pytest.fixture(scope="module")
def real(data_dir: Path) -> pa.StringArray:
    import pyarrow.parquet as pq

    return pq.read_table(data_dir / "pretrain" / "tech_cc0.parquet", columns=["text"])[
        "text"
    ].combine_chunks()[:150]


@pytest.mark.parametrize("make", [Words, make_encoder], ids=["words", "auto"])
def test_real_text_has_gpt2s_ids(
    make: Callable[[Tokenizer], Encoder],
    real: pa.StringArray,
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached = {
        "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    }
    for name, place in cached.items():
        shutil.copyfile(data_dir / "gpt2_bpe" / name, tmp_path / place)
    monkeypatch.setitem(os.environ, "TIKTOKEN_CACHE_DIR", str(tmp_path))
    gpt2 = Tokenizer.gpt2()
    assert same(make(gpt2), gpt2, real.to_pylist())

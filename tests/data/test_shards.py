"""Shards hold every document once, on the side that its text decides, and are read as one stream."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.corpus.chunks import find_chunks
from llm.corpus.clean.plan import Plan
from llm.corpus.encode import describe, encode_corpus
from llm.corpus.shard_writer import ShardWriter
from llm.data.shards import TokenStream
from llm.errors import UserError
from llm.params import Clean
from llm.runtime.io import sha256, write_json
from llm.sources.raw import Writer
from llm.text.hashing import is_held_out, is_validation
from llm.tokenizer.bpe import Tokenizer

DOCUMENTS = [
    f"Document {i} returns the {i % 7}th value é中 of <|endoftext|> the array.\n" * (1 + i % 5)
    for i in range(300)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(DOCUMENTS, 300)


def write_shards(
    texts: list[str], tokenizer: Tokenizer, folder: Path, val_fraction: float, shard_tokens: int
) -> Path:
    """The shards and meta.json of these documents, by way of data/raw/pretrain."""
    with Writer(folder / "raw", "pretrain", group_bytes=2000) as writer:
        for number, text in enumerate(texts):
            writer.write({"id": str(number), "text": text, "source": "test", "group": ""})
    chunks = find_chunks(folder / "raw", size=5000)
    shards, counts = encode_corpus(
        chunks, tokenizer, folder, val_fraction, shard_tokens, Plan(Clean(), None)
    )
    write_json(folder / "tokens" / "meta.json", describe(shards, counts, tokenizer, val_fraction))
    return folder / "tokens"


@pytest.fixture(scope="module")
def directory(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shards(
        DOCUMENTS, tokenizer, tmp_path_factory.mktemp("shards"), val_fraction=0.2, shard_tokens=1024
    )


@pytest.fixture
def copy(directory: Path, tmp_path: Path) -> Path:
    for path in directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def split_of(val: bool) -> list[str]:
    return [text for text in DOCUMENTS if is_validation(text, 0.2) == val]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_documents_come_back_from_the_shards_alone(
    split: str, directory: Path, tokenizer: Tokenizer
) -> None:
    paths = sorted(directory.glob(f"{split}-*.npy"))
    ids = np.concatenate([np.load(path, mmap_mode="r") for path in paths])
    assert ids[-1] == tokenizer.eos_id
    pieces = np.split(ids, np.flatnonzero(ids == tokenizer.eos_id) + 1)[:-1]
    assert [tokenizer.decode(piece[:-1]) for piece in pieces] == split_of(split == "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_meta_counts_what_the_files_hold(
    split: str, directory: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    meta = json.loads((directory / "meta.json").read_text())
    texts, entry = split_of(split == "val"), meta[split]
    assert (meta["dtype"], meta["vocab_size"], meta["eos_id"]) == (
        "uint16",
        tokenizer.vocab_size,
        tokenizer.eos_id,
    )
    assert entry["documents"] == len(texts)
    assert entry["bytes"] == sum(len(text.encode()) for text in texts)
    assert entry["tokens"] == sum(len(tokenizer.encode(text)) + 1 for text in texts)
    assert [shard["sha256"] for shard in entry["shards"]] == [
        sha256(directory / s["file"]) for s in entry["shards"]
    ]
    sizes = [shard["tokens"] for shard in entry["shards"]]
    assert sum(sizes) == entry["tokens"]
    assert set(sizes[:-1]) <= {1024}
    assert 0 < sizes[-1] <= 1024
    tokenizer.save(tmp_path)
    assert meta["tokenizer_sha256"] == sha256(tmp_path / "tokenizer.json")


def test_a_shard_has_the_bytes_that_numpy_writes(directory: Path, tmp_path: Path) -> None:
    for path in directory.glob("*.npy"):
        np.save(tmp_path / "again.npy", np.load(path))
        assert (tmp_path / "again.npy").read_bytes() == path.read_bytes()


@given(
    documents=st.lists(
        st.lists(st.integers(0, 65535), min_size=1, max_size=40), min_size=1, max_size=20
    ),
    shard_tokens=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_shards_joined_are_the_documents_joined(
    documents: list[list[int]], shard_tokens: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("shards")
    writer = ShardWriter(path, "train", np.dtype(np.uint16), shard_tokens)
    for ids in documents:
        writer.add(np.array(ids))
    shards = writer.close()
    arrays = [np.load(path / shard["file"], mmap_mode="r") for shard in shards]
    assert np.concatenate(arrays).tolist() == [i for ids in documents for i in ids]
    assert [len(array) for array in arrays] == [shard["tokens"] for shard in shards]
    assert all(len(array) == shard_tokens for array in arrays[:-1])


@given(data=st.data())
@settings(deadline=None)
def test_any_stretch_reads_as_from_one_array(data: st.DataObject, directory: Path) -> None:
    whole = np.concatenate([np.load(path) for path in sorted(directory.glob("train-*.npy"))])
    stream = TokenStream(directory, "train")
    assert len(stream) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    length = data.draw(st.integers(0, len(whole) - start))
    read = stream.read(start, length)
    assert read.dtype == whole.dtype
    assert np.array_equal(read, whole[start : start + length])


def test_reading_past_an_end_is_refused(directory: Path) -> None:
    stream = TokenStream(directory, "val")
    for start, length in ((-1, 2), (len(stream), 1), (0, len(stream) + 1)):
        with pytest.raises(IndexError):
            stream.read(start, length)


@pytest.mark.parametrize("chunk", [1, 7, 1000, 10**6])
def test_documents_are_found_whatever_the_chunk(
    chunk: int, directory: Path, tokenizer: Tokenizer
) -> None:
    found = TokenStream(directory, "val").documents_ids(chunk)
    assert [tokenizer.decode(ids.tolist()) for ids in found] == split_of(val=True)


@given(texts=st.lists(st.text(), max_size=50), fraction=st.floats(0.01, 0.99))
def test_adding_documents_moves_none_across(texts: list[str], fraction: float) -> None:
    assert [is_validation(text, fraction) for text in texts] == [
        is_validation(text, fraction) for text in texts[::-1]
    ][::-1]
    larger = [text for text in texts if is_validation(text, fraction)]
    assert all(is_validation(text, min(1.0, fraction * 1.5)) for text in larger)


def test_a_group_is_on_one_side_and_a_document_without_one_alone() -> None:
    sides = {is_held_out("an article", f"text {i}", 0.5) for i in range(50)}
    assert len(sides) == 1
    texts = [f"text {i}" for i in range(500)]
    assert [is_held_out("", text, 0.2) for text in texts] == [is_validation(x, 0.2) for x in texts]
    share = np.mean([is_held_out(f"group {i}", "", 0.02) for i in range(20000)])
    assert abs(share - 0.02) < 4 * (0.02 * 0.98 / 20000) ** 0.5
    smaller = [x for x in texts if is_held_out(x, "", 0.1)]
    assert all(is_held_out(x, "", 0.3) for x in smaller)


def test_the_split_is_the_same_today_as_ever_and_has_its_share() -> None:
    assert [is_validation(text, 0.5) for text in ("a", "b", "c", "d", "é", "", "\ud800")] == [
        True,
        False,
        True,
        False,
        False,
        False,
        True,
    ]
    share = np.mean([is_validation(f"text {i}", 0.02) for i in range(20000)])
    assert abs(share - 0.02) < 4 * (0.02 * 0.98 / 20000) ** 0.5


def test_a_large_vocabulary_is_written_as_uint32(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ranks = dict(tokenizer.ranks)
    parents = [bytes([a, b]) for a in range(256) for b in range(256) if bytes([a, b]) not in ranks]
    for token in parents[: 2**16 - len(ranks)]:
        ranks[token] = len(ranks)
    large = Tokenizer(ranks)
    assert large.vocab_size > 2**16
    stream = TokenStream(
        write_shards(DOCUMENTS, large, tmp_path, val_fraction=0.2, shard_tokens=10**6), "val"
    )
    assert stream.read(0, 1).dtype == np.uint32
    assert [large.decode(ids.tolist()) for ids in stream.documents_ids()] == split_of(val=True)


def test_an_empty_side_is_refused_with_the_remedy(tokenizer: Tokenizer, tmp_path: Path) -> None:
    trains = [text for text in DOCUMENTS if not is_validation(text, 0.2)]
    with pytest.raises(UserError, match=r"(?s)val.*tokenize\.val_fraction"):
        write_shards(trains, tokenizer, tmp_path, val_fraction=0.2, shard_tokens=1024)


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "train-00001.npy").unlink()
    with pytest.raises(UserError, match=r"train-00001\.npy: no such file.*dvc repro"):
        TokenStream(copy, "train")


@pytest.mark.parametrize("keep", [0, 5, 100, 500])
def test_a_truncated_shard_is_named(copy: Path, keep: int) -> None:
    path = copy / "train-00000.npy"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"train-00000\.npy.*dvc repro"):
        TokenStream(copy, "train")


def test_a_shard_of_another_type_or_length_is_named(copy: Path) -> None:
    path = copy / "train-00000.npy"
    tokens = np.load(path)
    for other in (tokens.astype(np.int64), tokens[:-1], tokens.reshape(2, -1)):
        np.save(path, other)
        with pytest.raises(UserError, match=r"train-00000\.npy.*meta\.json says"):
            TokenStream(copy, "train")


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"train": 1, "dtype": "uint16"}', '{"dtype": "nonsense", "train": {}}', "{"],
)
def test_a_broken_meta_is_named(copy: Path, content: str) -> None:
    (copy / "meta.json").write_text(content)
    with pytest.raises(UserError, match=r"meta\.json"):
        TokenStream(copy, "train")


def test_a_missing_meta_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"meta\.json.*dvc repro"):
        TokenStream(tmp_path, "train")

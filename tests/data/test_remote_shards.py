"""Token shards on a remote file system are read as those here are, and what is wrong with them is
named.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from llm.corpus.shard_writer import ShardWriter
from llm.data import remote_shards
from llm.data.batches import micro_batches
from llm.data.block_cache import BlockCache
from llm.data.push_shards import push
from llm.data.shards import TokenStream
from llm.data.windows import TokenWindows
from llm.errors import UserError
from llm.runtime import remote_fs
from llm.runtime.io import write_json

BLOCK, TOKENS = 1024, 6 * 1000 + 77  # bytes; of the training split


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """data/tokens with seven training shards and one of validation."""
    folder, rng = tmp_path / "tokens", np.random.default_rng(1)
    folder.mkdir()
    splits = {}
    for split, tokens in (("train", TOKENS), ("val", 500)):
        writer = ShardWriter(folder, split, np.dtype(np.uint16), 1000)
        writer.add(rng.integers(0, 300, tokens))
        splits[split] = {"bytes": tokens, "documents": 1, "shards": writer.close()}
    write_json(folder / "meta.json", {"dtype": "uint16", "eos_id": 0, "vocab_size": 300, **splits})
    return folder


@pytest.fixture
def away(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """data/tokens on another machine: meta.json alone; the shards are in the folder that
    LLM_TOKENS_URL names.
    """
    url = f"file://{tmp_path}/remote"
    push(directory, url, BLOCK)
    there = tmp_path / "other/tokens"
    there.mkdir(parents=True)
    (there / "meta.json").write_bytes((directory / "meta.json").read_bytes())
    monkeypatch.setenv("LLM_TOKENS_URL", url)
    monkeypatch.setenv("LLM_TOKENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_fs, "PAUSE", 0.01)
    monkeypatch.setattr(remote_fs, "LONGEST_PAUSE", 0.05)
    return there


def pushed(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "remote").iterdir()
    return folder


def test_every_span_is_read_as_it_is_here(
    directory: Path, away: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    here, there = TokenStream(directory, "train"), TokenStream(away, "train")
    assert (
        capsys.readouterr().out
        == f"tokens: 0.00 GB at file://{tmp_path}/remote, up to 20 GB of them in {tmp_path}/cache\n"
    )
    assert len(here) == len(there) == TOKENS
    rng = np.random.default_rng(2)
    for start in [0, 447, 448, 449, 999, TOKENS - 1, *rng.integers(0, TOKENS, 60)]:
        length = int(rng.integers(0, min(2500, TOKENS - start) + 1))
        found = there.read(int(start), length)
        assert found.dtype == here.dtype
        assert np.array_equal(found, here.read(int(start), length))
    with pytest.raises(IndexError):
        there.read(TOKENS - 5, 6)


def test_a_shard_that_lies_here_is_read_here(directory: Path, away: Path, tmp_path: Path) -> None:
    (away / "val-00000.npy").write_bytes((directory / "val-00000.npy").read_bytes())
    stream = TokenStream(away, "val")
    assert stream.rows_ahead == 0
    assert np.array_equal(stream.read(0, 500), TokenStream(directory, "val").read(0, 500))
    assert not (tmp_path / "cache").exists()


def test_batches_are_the_same_and_the_rows_of_later_ones_are_fetched_while_one_is_in_use(
    directory: Path, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = (
        TokenWindows(TokenStream(folder, "train"), 50, True) for folder in (directory, away)
    )
    there.rows_ahead = 24
    steps = [
        [
            batch.tensors["input_ids"].numpy()
            for batch in micro_batches(data, 3, range(20), 8, 2, range(4), pin=False)
        ]
        for data in (here, there)
    ]
    assert np.array_equal(*steps)
    monkeypatch.setenv("LLM_TOKENS_CACHE", f"{away}/another")
    there = TokenWindows(TokenStream(away, "train"), 50, True)
    there.rows_ahead = 24
    coming = micro_batches(there, 3, range(20), 8, 2, range(4), pin=False)
    batch = next(coming)
    assert batch.step == 0
    deadline = time.monotonic() + 20
    while (
        sum(shard.sound.count(1) for shard in there.stream.shards) < 12
    ):  # of 20 blocks; the two rows of the batch in use lie in four at most
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_cache_is_used_again_and_never_larger_than_its_limit(
    directory: Path, away: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = TokenStream(away, "train")
    stream.read(0, 1000)
    (pushed(tmp_path) / "train-00000.npy").unlink()
    remote_shards._connected.cache_clear()  # as another process
    assert np.array_equal(
        TokenStream(away, "train").read(0, 1000), TokenStream(directory, "train").read(0, 1000)
    )
    monkeypatch.setenv("LLM_TOKENS_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"train-00000\.npy is not there.*tokens push"):
        TokenStream(away, "train").read(0, 1000)

    cache, largest = BlockCache(tmp_path / "limited", 40_000, 2), 0
    twin = BlockCache(tmp_path / "limited", 40_000, 2)
    for number in range(300):
        (cache if number % 3 else twin).write(f"{number % 5:032x}/{number}", bytes(500))
        size = sum(path.stat().st_size for path in (tmp_path / "limited").glob("*/*"))
        largest = max(largest, size)
    assert 30_000 < largest <= 40_000
    assert cache.read(f"{4:032x}/299", 10, 20) == bytes(20)
    assert f"{0:032x}/0" not in cache


def test_the_cache_deletes_no_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "1").write_bytes(bytes(50_000))
    cache = BlockCache(tmp_path, 2_000, 1)
    for number in range(100):
        cache.write(f"{0:032x}/{number}", bytes(100))
    assert (tmp_path / "thesis" / "1").stat().st_size == 50_000
    assert f"{0:032x}/99" in cache
    assert f"{0:032x}/0" not in cache


def test_a_changed_shard_is_named_and_a_damaged_block_here_is_fetched_again(
    directory: Path, away: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TokenStream(directory, "train").read(0, 1000)
    assert np.array_equal(TokenStream(away, "train").read(0, 1000), expected)
    (tmp_path / "cache").joinpath(sorted((tmp_path / "cache").glob("*/0"))[0]).write_bytes(
        b"\0" * BLOCK
    )
    remote_shards._connected.cache_clear()
    assert np.array_equal(TokenStream(away, "train").read(0, 1000), expected)

    shard = pushed(tmp_path) / "train-00003.npy"
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.write_bytes(data)
    monkeypatch.setenv("LLM_TOKENS_CACHE", str(tmp_path / "fresh"))
    stream = TokenStream(away, "train")
    assert np.array_equal(
        stream.read(3600, 400), TokenStream(directory, "train").read(3600, 400)
    )  # another block
    with pytest.raises(
        UserError, match=r"train-00003\.npy is not what .*meta\.json describes: bytes 0 to 1,024"
    ):
        stream.read(3000, 1000)


def test_other_tokens_at_the_address_are_refused(
    directory: Path, away: Path, tmp_path: Path
) -> None:
    (away / "meta.json").write_text(
        (away / "meta.json").read_text().replace('"documents": 1', '"documents": 2', 1)
    )
    with pytest.raises(
        UserError, match=r"blocks\.json is not there\. Run `python -m llm tokens push"
    ):
        TokenStream(away, "train")
    (away / "meta.json").write_bytes((directory / "meta.json").read_bytes())
    index = pushed(tmp_path) / "blocks.json"
    whole = index.read_text()
    index.write_text(whole.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(UserError, match=r"has another train-00000\.npy than"):
        TokenStream(away, "train")
    index.write_text(whole[: len(whole) // 2])
    with pytest.raises(
        UserError, match=r"blocks\.json is not what `python -m llm tokens push` writes"
    ):
        TokenStream(away, "train")


def test_a_push_goes_on_where_it_was_cut_off_and_refuses_changed_shards(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/remote"
    push(directory, url, BLOCK)
    (pushed(tmp_path) / "blocks.json").unlink()
    (pushed(tmp_path) / "train-00002.npy").write_bytes(b"half")
    before = (pushed(tmp_path) / "train-00001.npy").stat().st_mtime_ns
    push(directory, url, BLOCK)
    assert (pushed(tmp_path) / "train-00001.npy").stat().st_mtime_ns == before
    assert (pushed(tmp_path) / "train-00002.npy").read_bytes() == (
        directory / "train-00002.npy"
    ).read_bytes()
    with open(directory / "train-00004.npy", "r+b") as file:
        file.seek(500)
        file.write(b"\xff\xff")
    with pytest.raises(UserError, match=r"train-00004\.npy is not what meta\.json says"):
        push(directory, url, BLOCK)
    (directory / "train-00004.npy").unlink()
    with pytest.raises(UserError, match=r"train-00004\.npy: no such file"):
        push(directory, url, BLOCK)


def test_a_push_without_tokens_says_what_brings_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"meta\.json: no such file\. `dvc checkout`"):
        push(tmp_path, f"file://{tmp_path}/remote", BLOCK)
    (tmp_path / "meta.json").write_text('{"train": {"shards": [{}]}}')
    with pytest.raises(
        UserError, match=r"meta\.json does not describe shards \(KeyError: 'file'\)"
    ):
        push(tmp_path, f"file://{tmp_path}/remote", BLOCK)


@pytest.mark.parametrize("given", ["0", "-3", "many", "nan"])
def test_an_impossible_limit_is_refused(
    given: str, away: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_TOKENS_CACHE_GB", given)
    with pytest.raises(UserError, match="LLM_TOKENS_CACHE_GB"):
        TokenStream(away, "train")


def test_a_remote_that_is_away_for_a_while_is_waited_for_and_then_told(
    directory: Path,
    away: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stream = TokenStream(away, "train")
    fs, down = stream.shards[0].remote.address.fs, threading.Event()
    read = fs.cat_file

    def flaky(*args, **more):
        if down.is_set():
            raise ConnectionError("no route to host")
        return read(*args, **more)

    monkeypatch.setattr(fs, "cat_file", flaky)
    down.set()
    back = threading.Timer(0.5, down.clear)
    back.start()
    assert np.array_equal(stream.read(0, 1000), TokenStream(directory, "train").read(0, 1000))
    assert capsys.readouterr().err.count("no route to host; trying again") == 1
    monkeypatch.setattr(remote_fs, "PATIENCE", 0.1)
    down.set()
    with pytest.raises(
        UserError, match=r"does not answer .*no route to host.* run the same command again"
    ):
        stream.read(1000, 1000)

"""A cluster writes the bytes that one machine writes, also when workers die."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from llm.corpus import chunks, encode
from llm.corpus.chunks import Chunk, find_chunks
from llm.corpus.clean.plan import Plan
from llm.corpus.encode import Ordered, encode_corpus
from llm.errors import UserError
from llm.params import Clean
from llm.runtime import pool_dask
from llm.runtime.io import sha256
from llm.sources.raw import Writer
from llm.tokenizer.bpe import Tokenizer

dask = pytest.importorskip("dask", reason="needs the extra `scale`")
distributed = pytest.importorskip("distributed", reason="needs the extra `scale`")


def squares(mark: Path) -> Callable[[int], int]:
    """A function whose process dies the first time that it sees the item 5."""

    def square(item: int) -> int:
        if item == 5 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return item * item

    return square


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
    ) as found:
        yield found.scheduler_address


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Chunk]:
    raw = tmp_path_factory.mktemp("raw")
    with Writer(raw, "pretrain", part_bytes=40_000, group_bytes=2000) as writer:
        for i in range(400):
            writer.write(
                {
                    "id": str(i),
                    "text": f"document {i} " + "the cat sat on the mat. " * (i % 40),
                    "source": "t",
                    "group": "",
                }
            )
    return find_chunks(raw, size=2000)


def write(found: list[Chunk], work: Path, ordered: Ordered | None) -> dict[str, str]:
    tokenizer = Tokenizer.train(
        (row.as_py() for chunk in found for row in chunks.read_chunk(chunk)["text"]), 300
    )
    encode_corpus(found, tokenizer, work, 0.2, 1500, Plan(Clean(), None), ordered)
    return {path.name: sha256(path) for path in sorted((work / "tokens").iterdir())}


def test_a_cluster_writes_the_bytes_of_one_process(
    found: list[Chunk], address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dask.config.config, "scheduler-address", address)
    assert write(found, tmp_path / "dask", pool_dask.ordered) == write(
        found, tmp_path / "local", None
    )


def test_a_worker_that_dies_costs_nothing_and_the_order_stays(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dask.config.config, "scheduler-address", address)
    make = partial(squares, tmp_path / "died")
    assert list(pool_dask.ordered(make, range(20))) == [i * i for i in range(20)]
    assert (tmp_path / "died").exists()


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(dask.config.config, "scheduler-address", "tcp://127.0.0.1:9")
    monkeypatch.setattr("llm.runtime.pool_dask.TIMEOUT", "1s")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9 .*does not answer"):
        list(pool_dask.ordered(encode.code_version, [1]))

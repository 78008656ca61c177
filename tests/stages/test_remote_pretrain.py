"""Pretraining with its tokens on an S3 server ends with the bytes of a model whose tokens lie here."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llm.data import block_cache
from llm.data.push_shards import push
from llm.errors import UserError
from llm.runtime import remote_fs
from llm.train.trainer import Trainer
from stages import pretrain, tokenize
from tests.pipeline.workspace import TINY
from tests.servers import S3
from tests.stages.test_tokenize import documents, workspace
from tests.train.checkpoint.test_remote import s3  # noqa: F401  (a fixture)

BLOCK, LIMIT = 2048, 40 * 1024  # bytes; the corpus has twice as many
MODEL = Path("models/base/model.safetensors")


def test_a_model_has_the_same_bytes_though_its_tokens_are_afar_and_the_server_is_away_twice(
    s3: S3,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(
        "AWS_MAX_ATTEMPTS", "1"
    )  # botocore and s3fs try for some seconds by themselves
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    training = {
        "tokens": 64 * 4 * 40,
        "batch_tokens": 256,
        "eval_every": 20,
        "eval_tokens": 500,
        "compile": False,
    }
    shape = TINY["model"] | {"max_position_embeddings": 512}
    root = workspace(
        tmp_path, documents(), model=shape, pretrain=training, tokenize={"shard_tokens": 20000}
    )
    monkeypatch.chdir(root)
    tokenize.main()
    pretrain.main()
    expected = MODEL.read_bytes()

    push(pretrain.TOKENS, "s3://bucket/tokens", BLOCK)
    shards = [*pretrain.TOKENS.glob("train-*.npy"), *pretrain.TOKENS.glob("val-*.npy")]
    assert sum(shard.stat().st_size for shard in shards) > 2 * LIMIT
    for shard in shards:
        shard.unlink()
    shutil.rmtree("models")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "other"))  # no state, no tokens
    monkeypatch.setenv("LLM_TOKENS_URL", "s3://bucket/tokens")
    monkeypatch.setenv("LLM_TOKENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LLM_TOKENS_CACHE_GB", str(LIMIT / 1e9))
    monkeypatch.setattr(remote_fs, "LONGEST_PAUSE", 0.5)
    step, sizes, write = Trainer.step, [], block_cache.BlockCache.write
    away, tell, back = {9}, remote_fs.Address._warn, threading.Timer(0.5, s3.start)

    def noted(self: block_cache.BlockCache, name: str, data: bytes) -> None:
        write(self, name, data)
        total = 0
        for path in self.folder.glob("*/*[0-9]"):
            with suppress(FileNotFoundError):  # another thread makes room
                total += path.stat().st_size
        sizes.append(total)

    def interrupted(self: Trainer, number: int, batches: Iterator) -> tuple[float, float, float]:
        if number in away:
            away.remove(number)
            s3.stop()
        return step(self, number, batches)

    def back_once_it_is_missed(self: remote_fs.Address, error: Exception) -> None:
        with suppress(RuntimeError):  # several threads miss it, and a timer starts once
            back.start()
        tell(self, error)

    monkeypatch.setattr(block_cache.BlockCache, "write", noted)
    monkeypatch.setattr(Trainer, "step", interrupted)
    monkeypatch.setattr(remote_fs, "PATIENCE", 1.0)
    with pytest.raises(
        UserError, match="run the same command again: it resumes from the last state"
    ):
        pretrain.main()
    assert not MODEL.exists()

    s3.start()
    monkeypatch.setattr(remote_fs, "PATIENCE", 60.0)
    monkeypatch.setattr(remote_fs.Address, "_warn", back_once_it_is_missed)
    away.add(25)
    capsys.readouterr()
    pretrain.main()
    printed = capsys.readouterr()
    assert "pretrain: resumes after step" in printed.out
    assert "trying again" in printed.err
    assert MODEL.read_bytes() == expected
    assert LIMIT / 2 < max(sizes) <= LIMIT + 2 * BLOCK  # counted while others write and delete

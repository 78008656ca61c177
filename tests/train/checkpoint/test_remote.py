"""A checkpoint outlives the machine: its copy on a remote file system is what the next one begins
with.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch

from llm.errors import UserError
from llm.runtime import remote_fs
from llm.train.checkpoint import open_state, remote
from llm.train.checkpoint.remote import MirroredState
from tests.servers import S3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    pytest.importorskip("moto")
    s3fs = pytest.importorskip("s3fs")
    # one that was made before these keys would be given again
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in S3.KEYS.items():
            patch.setenv(key, value)
        server = S3()
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        fsspec.filesystem("s3").makedirs(
            "bucket", exist_ok=True
        )  # as another module may have left it
        yield server
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture(params=["s3", "memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    root = {"s3": "s3://bucket", "memory": "memory://", "file": f"file://{tmp_path}/remote"}[
        request.param
    ]
    return f"{root}/{tmp_path.name}"


def state_of(machine: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> MirroredState:
    """The same run on some machine."""
    machine.mkdir(exist_ok=True)
    monkeypatch.setenv("DVC_ROOT", str(machine))
    monkeypatch.setenv("LLM_STATE_URL", url)
    state = open_state("pretrain", {"run": "one"})
    assert isinstance(state, MirroredState)
    return state


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((3,), float(step))}


def test_a_machine_without_a_state_begins_with_the_remote_one(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = state_of(tmp_path / "first", monkeypatch, url)
    with first.locked():
        for step in (10, 20, 30):
            first.save(step, tensors(step), {"step": step}, wait=True)
    second = state_of(tmp_path / "second", monkeypatch, url)
    with second.locked():
        loaded = second.load()
    assert loaded is not None
    assert loaded[1]["step"] == 30
    assert torch.equal(loaded[0]["model.w"], tensors(30)["model.w"])
    assert "step-00000030 fetched from" in capsys.readouterr().out
    assert second.remote._names() == ["step-00000030"]


def test_a_state_here_that_is_newer_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"file://{tmp_path}/remote"
    first = state_of(tmp_path / "first", monkeypatch, url)
    with first.locked():
        first.save(10, tensors(10), {"step": 10}, wait=True)
    shutil.copytree(tmp_path / "remote", tmp_path / "old")
    with first.locked():
        first.save(20, tensors(20), {"step": 20}, wait=True)
    shutil.rmtree(tmp_path / "remote")
    shutil.copytree(tmp_path / "old", tmp_path / "remote")
    with first.locked():
        loaded = first.load()
    assert loaded is not None
    assert loaded[1]["step"] == 20


def test_a_copy_that_was_cut_off_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/remote"
    first = state_of(tmp_path / "first", monkeypatch, url)
    with first.locked():
        first.save(10, tensors(10), {"step": 10}, wait=True)
        (half,) = (Path(shutil.copytree(path, path.with_name("step-00000020"))) for path in
                   (tmp_path / "remote").rglob("step-00000010"))  # fmt: skip
        (half / "meta.json").unlink()
    second = state_of(tmp_path / "second", monkeypatch, url)
    with second.locked():
        loaded = second.load()
    assert loaded is not None
    assert loaded[1]["step"] == 10


def test_what_a_cut_off_copy_left_does_not_spoil_the_next_one_of_that_name(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of more processes, which had a shard each."""
    first = state_of(tmp_path / "first", monkeypatch, url)
    folder = f"{first.remote.root}/step-00000020"
    first.remote.fs.makedirs(folder, exist_ok=True)
    first.remote.fs.pipe_file(f"{folder}/shard-00002-model-00001-of-00001.safetensors", b"half")
    with first.locked():
        first.save(20, tensors(20), {"step": 20}, wait=True)
    second = state_of(tmp_path / "second", monkeypatch, url)
    with second.locked():
        loaded = second.load()
    assert loaded is not None
    assert loaded[1]["step"] == 20


def test_a_pointer_that_names_no_checkpoint_is_refused_and_leads_to_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/remote"
    state = state_of(tmp_path / "first", monkeypatch, url)
    with state.locked():
        state.save(10, tensors(10), {"step": 10}, wait=True)
    (pointer,) = (tmp_path / "remote").rglob("latest")
    pointer.write_text("../../../../mine")
    mine = tmp_path / "mine.tmp"
    mine.mkdir()
    second = state_of(tmp_path / "second", monkeypatch, url)
    with (
        pytest.raises(UserError, match=r"latest says .*expected the name of a checkpoint"),
        second.locked(),
    ):
        pass
    assert mine.is_dir()


def test_the_loss_of_the_remote_is_survived_and_nobody_waits_for_it(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute is too long for a test: two seconds."""
    monkeypatch.setattr(remote_fs, "LONGEST_PAUSE", 0.5)
    url = f"s3://bucket/{tmp_path.name}"
    state = state_of(tmp_path / "first", monkeypatch, url)
    with state.locked():
        state.save(10, tensors(10), {"step": 10}, wait=True)
        s3.stop()
        state.save(20, tensors(20), {"step": 20})
        time.sleep(2)
        s3.start()
        state.wait()
    second = state_of(tmp_path / "second", monkeypatch, url)
    with second.locked():
        loaded = second.load()
    assert loaded is not None
    assert loaded[1]["step"] == 20


def test_a_remote_that_fails_is_asked_again_and_one_that_goes_on_failing_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote_fs, "PATIENCE", 2.0)
    monkeypatch.setattr(remote_fs, "PAUSE", 0.01)
    monkeypatch.setattr(remote_fs, "LONGEST_PAUSE", 0.02)
    state = state_of(tmp_path / "first", monkeypatch, f"memory://{tmp_path.name}")
    write, failures = state.remote.fs.pipe_file, [ConnectionError("reset by peer")] * 3

    def flaky(*args, **more):
        if failures:
            raise failures.pop()
        return write(*args, **more)

    monkeypatch.setattr(state.remote.fs, "pipe_file", flaky)
    with state.locked():
        state.save(10, tensors(10), {"step": 10}, wait=True)
        assert capsys.readouterr().err.count("reset by peer; trying again") == 1
        assert state.remote._names() == ["step-00000010"]
        monkeypatch.setattr(remote_fs, "PATIENCE", 0.1)
        failures += [ConnectionError("gone")] * 1000
        state.save(20, tensors(20), {"step": 20}, wait=True)
    assert "step-00000020 was not copied to memory://" in capsys.readouterr().err
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == 20


def test_training_does_not_wait_for_a_remote_that_stays_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_fs, "PATIENCE", 400.0)
    monkeypatch.setattr(remote_fs, "PAUSE", 0.01)
    monkeypatch.setattr(remote_fs, "LONGEST_PAUSE", 0.02)
    monkeypatch.setattr(remote, "BETWEEN", 0.1)
    state = state_of(tmp_path / "first", monkeypatch, f"memory://{tmp_path.name}")

    def away(*args, **more):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(state.remote.fs, "pipe_file", away)
    with state.locked():
        state.save(10, tensors(10), {"step": 10})
        began = time.monotonic()
        state.save(20, tensors(20), {"step": 20})
        assert time.monotonic() - began < 200
        monkeypatch.setattr(remote_fs, "PATIENCE", 0.1)
        state.wait()


def test_a_remote_that_stays_away_is_told_before_anything_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_fs, "PATIENCE", 0.5)
    monkeypatch.setattr(remote_fs, "PAUSE", 0.1)
    state = state_of(tmp_path / "first", monkeypatch, "memory://away")

    def away(path: str) -> bool:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(state.remote.fs, "exists", away)
    with (
        pytest.raises(UserError, match=r"memory://away cannot be read .*no route to host"),
        state.locked(),
    ):
        pass


def test_an_unknown_address_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="LLM_STATE_URL=nowhere://x"):
        state_of(tmp_path, monkeypatch, "nowhere://x")

"""A disk that is really full, as far as a test can have one: the kernel refuses files past a size
(`ulimit -f`).

What a whole stage does then is in tests/pipeline/test_disk_full.py.
"""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from llm.errors import UserError
from llm.runtime.io import save_tensors, whole_directory, write_bytes, write_json
from llm.runtime.stage import run_stage
from llm.train.checkpoint.local import State

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")

LIMIT = 50_000  # bytes
LARGE = {"a": torch.arange(100_000.0)}  # 400,000 bytes
SMALL = {"a": torch.arange(1_000.0)}


@contextmanager
def no_room() -> Iterator[None]:
    """No file may grow past LIMIT; the same errors as on a full disk, but for the number: EFBIG,
    not ENOSPC.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_tensors_that_do_not_fit_raise_an_os_error_with_the_path(tmp_path: Path) -> None:
    with no_room(), pytest.raises(OSError, match=r"weights\.safetensors") as caught:
        save_tensors(LARGE, tmp_path / "weights.safetensors")
    assert caught.value.errno == errno.EFBIG


def test_a_file_that_does_not_fit_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    write_json(path, {"loss": 1.0})
    with no_room(), pytest.raises(OSError, match=r"metrics\.json") as caught:
        write_bytes(path, bytes(2 * LIMIT))
    assert caught.value.filename == str(path)
    assert path.read_text() == '{\n  "loss": 1.0\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def tensors(directory: Path) -> None:
    save_tensors(LARGE, directory / "model.safetensors")


def data(directory: Path) -> None:
    write_bytes(directory / "config.json", bytes(2 * LIMIT))


def python(directory: Path) -> None:
    (directory / "page.html").write_bytes(bytes(2 * LIMIT))


@pytest.mark.parametrize("write", [tensors, data, python])
def test_a_directory_that_does_not_fit_is_a_user_error_and_the_old_one_stays(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "models" / "base"
    path.mkdir(parents=True)
    (path / "old").touch()
    said = r"models/base could not be written .* Free some space"
    with (
        no_room(),
        pytest.raises(UserError, match=said),
        whole_directory(path, ("old",)) as directory,
    ):
        write(directory)
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(path.parent.iterdir()) == [path]


def test_another_error_while_a_directory_is_written_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), whole_directory(tmp_path / "out", ()):
        (tmp_path / "missing").read_text()


def test_a_place_that_cannot_be_written_is_one_message_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        run_stage(lambda: write_bytes(tmp_path / "file" / "out.html", b""))
    assert str(caught.value).startswith(
        f"\nerror: {tmp_path / 'file'}: File exists. Name another place"
    )


def test_a_stage_on_a_full_disk_ends_in_one_message_with_path_and_remedy(tmp_path: Path) -> None:
    with no_room(), pytest.raises(SystemExit) as caught:
        run_stage(lambda: write_bytes(tmp_path / "metrics" / "pretrain.json", bytes(2 * LIMIT)))
    message = str(caught.value)
    assert str(tmp_path / "metrics" / "pretrain.json") in message
    assert "Free some space and rerun `dvc repro`" in message
    assert caught.value.code != 0


def test_checkpoints_that_do_not_fit_are_told_once_and_the_last_good_one_stays(
    capfd: pytest.CaptureFixture,
) -> None:
    state = State("pretrain", {"run": "full"})
    with state.locked():
        state.save(1, SMALL, {"step": 1}, wait=True)
        with no_room():
            for step in (2, 3):
                state.save(step, LARGE, {"step": step}, wait=True)
        err = capfd.readouterr().err
        assert err.count("warning") == 1
        assert "no checkpoint of step 2" in err
        assert "Traceback" not in err
        loaded = state.load()
        assert loaded is not None
        assert loaded[1]["step"] == 1
        state.save(4, LARGE, {"step": 4}, wait=True)  # there is room again
    loaded = state.load()
    assert loaded is not None
    assert loaded[1]["step"] == 4
    assert sorted(p.name for p in state.directory.glob("step-*")) == [
        "step-00000001",
        "step-00000004",
    ]


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(
    tmp_path: Path,
) -> None:
    path = tmp_path / "pretrain.json"
    dead, living, other = (
        tmp_path / n for n in (f".{path.name}.{2**22 + 1}.tmp", f".{path.name}.1.tmp", ".x.tmp")
    )
    for left in (dead, living, other):
        left.touch()
    write_json(path, {})
    assert sorted(tmp_path.iterdir()) == sorted([living, other, path])

"""Writing outputs whole or not at all, with the same bytes for the same content."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import psutil

from llm.errors import NO_SPACE, UserError, no_space

if TYPE_CHECKING:
    from torch import Tensor


def sha256(path: str | Path) -> str:
    """Hex digest of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write beside the target, fsync, rename: a reader sees the old file or the new one, never a
    half.

    Raises:
        OSError: always with the path in it, which Python leaves out where the writing itself fails.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(".*.tmp"):
        found = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\.tmp", other.name)
        if found and not psutil.pid_exists(int(found[1])):  # its writer was killed
            other.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_where_told(path: str | Path, data: bytes) -> None:
    """Write a file that the user names: a link keeps pointing where it does; a pipe or a device
    gets the bytes.

    Raises:
        OSError: always with the path in it.
    """
    path = Path(path)
    # What lies in /dev may be this process's own output, and so any file that the shell has opened
    # to append to.
    if path.is_relative_to("/dev") or (path.exists() and not path.is_file()):
        try:
            with open(path, "ab") as file:
                file.write(data)
        except BrokenPipeError:
            raise UserError(f"{path}: its reader ended before everything was written.") from None
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
    else:
        write_bytes(path.resolve(), data)


def save_tensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file; at most one key of metadata, since more come in random order.

    Raises:
        OSError: a full disk, and the like, which safetensors itself raises as an Exception of its
            own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(
            r"\b(?:os error|code:) (\d+)", str(error)
        )  # the wording until 0.5 and since
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with a stable layout; floats keep all their digits; NaN and infinity are refused."""
    write_bytes(path, utf8(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"))


def utf8(text: str) -> bytes:
    """JSON text as UTF-8, which has no halves of surrogate pairs: they become `\\udXXX`, as JSON
    writes them.
    """
    return text.encode("utf-8", "backslashreplace")


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or broken file is a UserError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run `dvc repro` if a stage makes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Copy it again; if a stage makes it, delete it and run `dvc repro`."
        ) from None


def read_yaml(path: str | Path) -> Any:
    """Read YAML; a missing or broken file is a UserError that names it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Run from the repository's root, or restore it with git."
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return parse_yaml(text, path)


def parse_yaml(text: str | bytes, where: str | Path) -> Any:
    """The value of YAML 1.2, which is what DVC reads and writes; `where` is for the UserError of
    broken text.

    In YAML 1.1 `no` is false and `1e-4` a text, so that what DVC has written would be read as
    something else."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None


def link(source: str, target: str) -> None:
    """A second name for the file, or a copy where the file system has none."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave wherever they look


def other_files(directory: Path, files: Sequence[str]) -> list[Path]:
    """The files in `directory`, as paths relative to it, that match none of the patterns `files`;
    sorted; no LITTER.

    A pattern has as many parts as the paths that it matches: `*.npy` matches nothing in a folder of
    the directory."""

    def unreadable(error: OSError) -> None:
        if not isinstance(
            error, FileNotFoundError
        ):  # a directory that another process takes away just now
            raise error

    patterns = [(len(PurePath(pattern).parts), pattern) for pattern in files]
    found = []
    for folder, folders, names in os.walk(directory, onerror=unreadable):
        paths = [
            Path(folder, name)
            for name in names + [f for f in folders if os.path.islink(os.path.join(folder, f))]
        ]
        found += [path.relative_to(directory) for path in paths if path.name not in LITTER]
    return sorted(
        p
        for p in found
        if not any(len(p.parts) == n and p.match(pattern) for n, pattern in patterns)
    )


def refuse_other_files(directory: Path, files: Sequence[str]) -> None:
    """Raise UserError where `directory` is a file, or holds one that matches none of the patterns
    `files`.
    """
    if directory.exists() and not directory.is_dir():
        raise UserError(
            f"{directory} is a file; a directory is written there. Move it elsewhere, and run this again."
        )
    others = other_files(directory, files)
    if others:
        more = f" and {len(others) - 1} more files" if len(others) > 1 else ""
        raise UserError(
            f"{directory} holds {others[0].as_posix()}{more}, which this project did not write; the directory is "
            "replaced as a whole. Move what is yours elsewhere, and run this again."
        )


@contextmanager
def whole_directory(path: str | Path, files: Sequence[str]) -> Iterator[Path]:
    """A new directory that takes the place of `path` when the block ends without an error.

    A kill in the middle leaves `path` as it was; what the dead process left beside it is removed by
    the next one. Two processes that write the same directory do not disturb each other: the one
    that ends last has its content there.

    Args:
        files: patterns of the files that are written there. A directory with any other file is
            somebody else's, and is not replaced.

    Raises:
        UserError: `path` holds other files, or the new directory does not fit on the disk; `path`
            is as it was.
    """
    path = Path(path)
    if (
        path.is_symlink()
    ):  # to another disk, perhaps: the directory that it leads to is replaced, and the link stays
        path = path.resolve()
    refuse_other_files(path, files)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        found = re.fullmatch(rf"\.{re.escape(path.name)}\.(\d+)\.tmp", stale.name)
        if found and (int(found[1]) == os.getpid() or not psutil.pid_exists(int(found[1]))):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        refuse_other_files(path, files)  # again: the block may have taken hours
        _take_place(temporary, path)
    except OSError as error:
        if error.errno in NO_SPACE:
            raise no_space(path, error) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, path: Path) -> None:
    """Put a directory where another may be, which a third process may be taking away or putting
    there.
    """
    for attempt in range(50):
        try:
            if path.exists():
                shutil.rmtree(path)
            os.replace(temporary, path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or attempt == 49:
                raise
            time.sleep(0.01)

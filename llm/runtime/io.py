"""Atomic writing of outputs, with the same bytes for the same content; reading of JSON and YAML."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import psutil

from llm.errors import NO_SPACE, UserError, no_space

if TYPE_CHECKING:
    from torch import Tensor


def sha256(path: str | Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_digest(files: Iterable[Path], root: str | Path) -> str:
    """Return one hexadecimal SHA-256 of the names (relative to `root`) and bytes of files."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write beside the target, fsync, rename: a reader sees the old file or the new one.

    Raises:
        OSError: writing failed; the error names the path, which Python's own does not always.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in _left_behind(path):
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


def _left_behind(path: Path) -> list[Path]:
    """Return the temporary files of `path` whose writers were killed."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.tmp")
    matches = [(other, pattern.fullmatch(other.name)) for other in path.parent.glob(".*.tmp")]
    return [other for other, match in matches if match and not psutil.pid_exists(int(match[1]))]


def write_where_told(path: str | Path, data: bytes) -> None:
    """Write a file that the user names: links are followed; pipes and devices get the bytes.

    Raises:
        OSError: writing failed; the error names the path.
        UserError: the reader of a pipe ended.
    """
    path = Path(path)
    # A path in /dev may be this process's own output: any file that the shell opened to append to.
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
        OSError: such as a full disk, for which safetensors has an exception of its own.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:
        # The wording until 0.5, and since.
        number = re.search(r"\b(?:os error|code:) (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON with a stable layout and all digits; refuse NaN and infinity."""
    write_bytes(path, utf8(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"))


def utf8(text: str) -> bytes:
    """Return JSON text as UTF-8; lone surrogates, which UTF-8 lacks, become `\\udXXX`."""
    return text.encode("utf-8", "backslashreplace")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file; raise UserError if it is missing or broken."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run `dvc repro` if a stage makes it.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}). Copy it again; if a stage makes it, delete it and run `dvc repro`."
        ) from None


def read_yaml(path: str | Path) -> Any:
    """Return the content of a YAML file; raise UserError if it is missing or broken."""
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
    """Return the value of YAML 1.2, which DVC reads and writes.

    In YAML 1.1 `no` is false and `1e-4` a text, so DVC's files would be misread.

    Args:
        text: the YAML.
        where: its origin, for the message.

    Raises:
        UserError: the text is not valid YAML.
    """
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise UserError(f"{where} is not valid YAML: {error}") from None


def link(source: str, target: str) -> None:
    """Make a hard link to a file, or a copy if the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")  # files that file managers leave everywhere


def other_files(directory: Path, files: Sequence[str]) -> list[Path]:
    """Return the files in `directory` that match no pattern, as sorted relative paths; no LITTER.

    Args:
        directory: searched with all its folders.
        files: patterns, each with as many parts as the paths that it matches: `*.npy` matches
            nothing in a folder of the directory.
    """

    def unreadable(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # another process just removed the directory
            raise error

    patterns = [(len(PurePath(pattern).parts), pattern) for pattern in files]
    relative = []
    for folder, folders, names in os.walk(directory, onerror=unreadable):
        names += [f for f in folders if os.path.islink(os.path.join(folder, f))]
        paths = [Path(folder, name) for name in names if name not in LITTER]
        relative += [path.relative_to(directory) for path in paths]
    return sorted(
        p
        for p in relative
        if not any(len(p.parts) == n and p.match(pattern) for n, pattern in patterns)
    )


def refuse_other_files(directory: Path, files: Sequence[str]) -> None:
    """Raise UserError if `directory` is a file, or contains one that matches no pattern."""
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
    """Yield a new directory that replaces `path` when the block ends without an error.

    A kill in the middle leaves `path` as it was; the next process removes what the dead one left
    beside it. Two processes may write the same directory: the content of the last one stays.

    Args:
        path: the directory.
        files: patterns of the files that are written there. A directory with any other file is
            not replaced: the file may be the user's.

    Raises:
        UserError: `path` has other files, or the new directory does not fit on the disk; `path`
            is unchanged.
    """
    path = Path(path)
    path = path.resolve() if path.is_symlink() else path  # a link stays; its target is replaced
    refuse_other_files(path, files)
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in _left_behind(path):
        shutil.rmtree(stale, ignore_errors=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
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
    """Replace a directory, while other processes may remove it or write it too."""
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

"""Files of a DVC experiment, a git revision or the workspace, kept by git or by DVC."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.runtime.io import parse_yaml

WORKSPACE = "workspace"


class Revision:
    """The files of an experiment, a branch, a tag, a commit, or the `workspace`."""

    def __init__(self, name: str, root: Path | None = None) -> None:
        """Open a revision.

        Args:
            name: a git revision, an experiment, or `workspace`.
            root: of the repository; by default the working directory.

        Raises:
            UserError: there is no such revision, or no repository.
        """
        self.name, self.root = name, Path(root or ".")
        self._files: Any = None
        if name == WORKSPACE:
            return
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException

        try:
            self._files = DVCFileSystem(str(self.root), rev=name)
            self._files.repo  # noqa: B018  resolves the revision
        except DvcException as error:
            raise UserError(
                f"{name}: {error}. Give a git revision, an experiment of `dvc exp show`, or {WORKSPACE}."
            ) from None

    def __enter__(self) -> Revision:
        return self

    def __exit__(self, *_: object) -> None:
        if self._files is not None:
            self._files.close()

    @property
    def commit(self) -> str | None:
        """The revision's commit, 40 digits; None for the workspace."""
        return None if self._files is None else str(self._files.repo.get_rev())

    def list(self, directory: str) -> list[str]:
        """Return the paths of the files in a directory; none if it does not exist."""
        if self._files is None:
            return sorted(
                path.relative_to(self.root).as_posix() for path in (self.root / directory).glob("*")
            )
        return sorted(self._files.find(directory)) if self._files.isdir(directory) else []

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Raises:
            UserError: the revision has no such file, or DVC knows it but its content is not on this
                machine.
        """
        try:
            if self._files is None:
                return (self.root / path).read_bytes()
            with self._files.open(path, "rb") as file:
                return bytes(file.read())
        except (OSError, FileNotFoundError) as error:
            message = f"{self.name} has no {path} here ({error})."
            if self._files is not None:  # for DVC, experiments are not among all commits
                message += (
                    f" From a remote `dvc fetch --all-commits {path}` brings it where {self.name} is a commit, "
                    f"`dvc exp pull origin {self.name}` where it is an experiment."
                )
            raise UserError(message) from None

    def json(self, path: str) -> Any:
        """Return the content of a JSON file; raise UserError as `read`, or if it is not JSON."""
        try:
            return json.loads(self.read(path))
        except ValueError as error:
            raise UserError(f"{self.name}: {path} is not valid JSON ({error}).") from None

    def yaml(self, path: str) -> Any:
        """Return the content of a YAML file; raise UserError as `read`, or if it is not YAML."""
        return parse_yaml(self.read(path), f"{self.name}: {path}")


def experiments(root: Path | None = None) -> list[str]:
    """Return the names of all experiments of the repository, sorted."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(root or ".")) as repo:
            by_commit = repo.experiments.ls(all_commits=True)
    except DvcException as error:
        raise UserError(
            f"no experiments can be read here ({error}). Run at the top of the repository."
        ) from None
    return sorted({name for names in by_commit.values() for name, _ in names})

"""What the tests that train in a checkout share, since it takes seconds to make."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from filelock import FileLock

from tests.pipeline.torture import STAGES, Victims
from tests.pipeline.workspace import checkout, copy, run


@pytest.fixture(scope="package")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout whose data are ready and whose models are not; take a `copy` of it.

    The first process of pytest-xdist that needs it makes it, for all of them.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    root = folder / "prepared"
    with FileLock(folder / "prepared.lock"):
        if not (folder / "prepared.done").exists():
            checkout(root)
            run(root, "dvc", "repro", "mix", timeout=500, fresh=True, PYTHONHASHSEED="7")
            (folder / "prepared.done").touch()
    return root


@pytest.fixture(scope="package")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which the whole pipeline has run; its results are committed."""
    root = checkout(tmp_path_factory.mktemp("dag") / "first")
    run(root, "dvc", "repro", timeout=500)
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "first run")
    return root


@pytest.fixture(scope="package")
def small_rank(first: Path) -> CompletedProcess[str]:
    """The experiment `small-rank` of `first`, and what it printed; its results lie in the
    workspace.
    """
    return run(
        first, "dvc", "exp", "run", "-S", "finetune.lora.r=2", "-n", "small-rank", timeout=500
    )


@pytest.fixture(scope="package")
def victims(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Victims]]:
    """By stage a process and its checkout, so that two stages can be harmed side by side."""
    found = {
        stage: Victims(copy(prepared, tmp_path_factory.mktemp(stage) / "checkout"))
        for stage in STAGES
    }
    found["finetune"].run("pretrain")
    yield found
    for each in found.values():
        each.close()

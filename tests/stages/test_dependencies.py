"""A stage depends, in its dvc.yaml, on the code that it runs: on all of it that decides what it
writes, and no more.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

FILES = ("dvc.yaml", "align/dvc.yaml", "scaling/dvc.yaml", "techniques/dvc.yaml")
# What every stage runs and what decides nothing of what it writes. Params are dependencies by their
# values.
AROUND = {
    *("addresses", "errors", "runtime", "params", "plan", "tracking"),
    *("parallel/launch.py", "parallel/gpu_lease.py"),  # which processes run, on which devices
    *(
        "data/block_cache.py",
        "data/remote_shards.py",
    ),  # where tokens are read: their digests say which they are
    "tokenizer/gpt2.py",  # fetches files, whose digests it checks
    "training",  # stages/training.py: locks, timing and tracking around a training stage
}
# The same for single stages.
APART = {
    "checkpoint": {
        "sources",
        "tasks",
    },  # the hub's module is asked only whether the hub can be reached
    "download": {
        "tasks"
    },  # only the columns of a kind are used; a new prompt is no reason to fetch again
    # documents are compared, chunk by chunk, in tokenize alone; these look its decisions up
    "mix": {"corpus/chunks.py"},
    "evaluate": {"corpus/chunks.py"},
    "report": {"tasks"},
    "scaling": {"evaluate", "report", "text"},  # figures of other pages
    "techniques": {"evaluate", "report", "text"},
}


@cache
def imported(path: Path) -> frozenset[Path]:
    """The project's modules that a module names in an import, at its top or within functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.If)
            and isinstance(node.test, ast.Name)
            and node.test.id == "TYPE_CHECKING"
        ):
            node.body = []
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{each.name}" for each in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            names |= {each.name for each in node.names}
    found = [
        ROOT / name.replace(".", "/") for name in names if name.split(".")[0] in ("llm", "stages")
    ]
    found = [path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for path in found]
    return frozenset(path for path in found if path.is_file())


def run_by(module: str, around: set[str]) -> set[str]:
    """The modules that `python -m module` may come to, as paths from the top; not through those of
    `around`.
    """
    seen: set[str] = set()
    waiting = [ROOT / f"{module.replace('.', '/')}.py"]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(ROOT).as_posix()
        if name in seen or any(
            within(name, f"{top}/{other}") for other in around for top in ("llm", "stages")
        ):
            continue
        seen.add(name)
        waiting += imported(path)
    return {name for name in seen if not name.endswith("__init__.py")}


def within(path: str, other: str) -> bool:
    """Whether a path is another, with or without .py, or lies in it."""
    return path in (other, f"{other}.py") or path.startswith(f"{other}/")


def stages() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for file in FILES:
        found |= yaml.safe_load((ROOT / file).read_text(encoding="utf-8"))["stages"]
    return {name: stage.get("do", stage) for name, stage in found.items()}


@pytest.mark.parametrize("name", stages())
def test_a_stage_depends_on_the_code_that_it_runs(name: str) -> None:
    stage = stages()[name]
    module = stage["cmd"].split()[2]
    code = [path for path in stage["deps"] if path.startswith(("llm", "stages"))]
    assert [path for path in code if not (ROOT / path).exists()] == []
    runs = run_by(module, AROUND | APART.get(name, set()))
    assert len(runs) > 1 or name == "checkpoint"
    lacking = sorted(path for path in runs if not any(within(path, other) for other in code))
    assert not lacking, (
        f"{name} runs {', '.join(lacking)}: name them in its deps, or here in AROUND or APART"
    )


@pytest.mark.parametrize(
    "name", sorted(stages().keys() - {"techniques"})
)  # its work is done by a process it starts
def test_a_stage_depends_on_no_code_that_it_does_not_run(name: str) -> None:
    runs = run_by(stages()[name]["cmd"].split()[2], set())
    code = [path for path in stages()[name]["deps"] if path.startswith(("llm", "stages"))]
    assert [path for path in code if not any(within(module, path) for module in runs)] == []

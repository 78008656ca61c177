"""Finetuning tasks: one module a kind, found by its name in this folder. docs/EVALUATION.md shows
how to add one.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from typing import cast

from llm.errors import UserError
from llm.tasks.base import Task


def kinds() -> tuple[str, ...]:
    """The kinds of task, by name: the modules of this folder that say which columns their records
    have.
    """
    modules = {
        found.name: importlib.import_module(f"llm.tasks.{found.name}")
        for found in pkgutil.iter_modules(__path__)
    }
    return tuple(sorted(name for name, module in modules.items() if hasattr(module, "COLUMNS")))


def get(kind: str, name: str | None = None) -> Task:
    """The module of a kind of task.

    Args:
        kind: one of `kinds()`.
        name: the task's own name in `mix.tasks`, for the message.

    Raises:
        UserError: there is no such kind, or its module lacks something that every kind has.
    """
    if kind not in kinds():
        close = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"download.{name or kind}: {kind!r} is not a kind of task; known: {', '.join(kinds())}.{hint}\n"
            f"Give a dataset with a name of its own its kind, e.g. `sst2: {{kind: classification, ...}}`."
        )
    module = importlib.import_module(f"llm.tasks.{kind}")
    wanted = [*Task.__annotations__, *(key for key in vars(Task) if not key.startswith("_"))]
    missing = [key for key in dict.fromkeys(wanted) if not hasattr(module, key)]
    if missing:
        raise UserError(
            f"{module.__file__}: a kind of task needs {', '.join(missing)}. llm/tasks/base.py says what each is."
        )
    return cast(Task, module)

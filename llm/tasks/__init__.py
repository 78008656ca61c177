"""Kinds of finetuning task: a class in a module of this folder. docs/EVALUATION.md adds one."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import string
import types

from llm.errors import UserError
from llm.tasks.base import Task

REQUIRED = ("COLUMNS", "METRICS", "CUT", "RESPONSE_TOKENS", "TEST_COLUMNS", "TEMPLATES", "target")


def _task_class(module: types.ModuleType) -> type[Task] | None:
    """Return the subclass of `Task` that a module defines, if any."""
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, Task)
            and value.__module__ == module.__name__
            and value is not Task
        ):
            return value
    return None


def kinds() -> tuple[str, ...]:
    """Return the names of the modules in this folder that define a kind of task."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(n for n in names if _task_class(importlib.import_module(f"llm.tasks.{n}")))


def get(kind: str, name: str | None = None) -> Task:
    """Return the task of a kind.

    Args:
        kind: one of `kinds()`.
        name: the task's own name in `mix.tasks`, for the message.

    Raises:
        UserError: the kind is unknown, or its class lacks a required attribute.
    """
    if kind not in kinds():
        close = difflib.get_close_matches(kind, kinds(), n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"download.{name or kind}: {kind!r} is not a kind of task; known: {', '.join(kinds())}.{hint}\n"
            f"Give a dataset with a name of its own its kind, e.g. `sst2: {{kind: classification, ...}}`."
        )
    module = importlib.import_module(f"llm.tasks.{kind}")
    task_class = _task_class(module)
    assert task_class is not None
    missing = [
        key for key in REQUIRED if getattr(task_class, key, None) is getattr(Task, key, None)
    ]
    if missing:
        raise UserError(
            f"{module.__file__}: a kind of task needs {', '.join(missing)}. llm/tasks/base.py describes them."
        )
    _check_templates(task_class, str(module.__file__))
    field, columns = task_class.EXTRACTIVE, ", ".join(task_class.TEST_COLUMNS)
    if field is not None and (task_class.CLOSED or field not in task_class.TEST_COLUMNS):
        raise UserError(
            f"{module.__file__}: EXTRACTIVE is {field!r}; expected a text of TEST_COLUMNS ({columns}) of which the "
            "answers are spans, in a task without CLOSED."
        )
    return task_class()


def _check_templates(task_class: type[Task], where: str) -> None:
    """Raise UserError for a template that lacks a field its answer depends on, or names another."""
    columns = tuple(task_class.TEST_COLUMNS)
    shown = columns if task_class.SHOWN is None else task_class.SHOWN
    needed = dict.fromkeys(name for name in (*shown, task_class.CUT, task_class.EXTRACTIVE) if name)
    for template in task_class.TEMPLATES:
        try:
            parsed = list(string.Formatter().parse(template))
        except ValueError as error:
            raise UserError(
                f"{where}: the template {template!r} cannot be filled ({error}); write braces of its text twice."
            ) from None
        names = {name for _, name, _, _ in parsed if name is not None}
        if lacking := [f"{{{name}}}" for name in needed if name not in names]:
            raise UserError(
                f"{where}: the template {template!r} lacks {', '.join(lacking)}, so the model would answer without it. "
                f"Add it; where the answer does not depend on it, leave it out of SHOWN (now {', '.join(shown)})."
            )
        if task_class.fields is Task.fields and (other := sorted(names - set(columns))):
            raise UserError(
                f"{where}: the template {template!r} names {', '.join(other)}; the fields are {', '.join(columns)} "
                "(TEST_COLUMNS), or what a method `fields` returns."
            )

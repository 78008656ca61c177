"""Finetuning tasks: one module a kind, found by its name."""

from __future__ import annotations

import difflib
import importlib
from typing import cast

from llm.errors import UserError
from llm.tasks.base import Task

KINDS = ("summarization", "question_answering", "classification", "instructions")


def get(kind: str, name: str | None = None) -> Task:
    """The module of a kind of task.

    Args:
        kind: one of `KINDS`.
        name: the task's own name in `mix.tasks`, for the message.

    Raises:
        UserError: there is no such kind.
    """
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"download.{name or kind}: {kind!r} is not a kind of task; known: {', '.join(KINDS)}.{hint}\n"
            f"Give a dataset with a name of its own its kind, e.g. `sst2: {{kind: classification, ...}}`."
        )
    return cast(Task, importlib.import_module(f"llm.tasks.{kind}"))

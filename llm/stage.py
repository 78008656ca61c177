"""What surrounds the work of a training stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llm import tracking
from llm.params import Params
from llm.timing import stage_timing
from llm.train import distributed
from llm.train.loop import Tracker, Untracked
from llm.train.state import State


@contextmanager
def training_stage(params: Params, state: State) -> Iterator[tuple[Tracker, dict[str, Any]]]:
    """Join the processes that train together, lock the state, and in the first process time and track the stage.

    Gives what tracks curves, and the dict that becomes the stage's timing file.
    """
    name = state.stage
    others: Tracker = Untracked()
    with (
        distributed.processes(),
        distributed.on_first(stage_timing(name), {}) as timing,
        state.locked(),
        distributed.on_first(tracking.stage(params, name), others) as run,
    ):
        yield run, timing

"""What surrounds the work of a training stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llm.parallel import processes
from llm.params import Params
from llm.runtime.timing import stage_timing
from llm.tracking import run as tracking
from llm.train.checkpoint.local import State
from llm.train.training_log import Tracker, Untracked


@contextmanager
def training_stage(params: Params, state: State) -> Iterator[tuple[Tracker, dict[str, Any]]]:
    """Join the processes that train together, lock the state, and in the first process time and
    track the stage.

    Gives what tracks curves, and the dict that becomes the stage's timing file.
    """
    name = state.stage
    others: Tracker = Untracked()
    with (
        processes.process_group(),
        processes.on_main(stage_timing(name), {}) as timing,
        state.locked(),
        processes.on_main(tracking.stage(params, name), others) as run,
    ):
        yield run, timing

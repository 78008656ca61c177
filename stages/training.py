"""Context of a training stage: process group, locked state, timing and tracking."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llm.parallel import processes
from llm.params import Params
from llm.runtime.timing import stage_timing
from llm.tracking.run import stage as tracked_stage
from llm.train.checkpoint.local import State
from llm.train.training_log import Tracker, Untracked


@contextmanager
def training_stage(params: Params, state: State) -> Iterator[tuple[Tracker, dict[str, Any]]]:
    """Join the process group and lock the state; time and track the stage on the main process.

    Yields the tracker of curves, and the dict that becomes the stage's timing file.
    """
    name = state.stage
    others: Tracker = Untracked()
    with (
        processes.process_group(),
        processes.on_main(stage_timing(name), {}) as timing,
        state.locked(),
        processes.on_main(tracked_stage(params, name), others) as tracker,
    ):
        yield tracker, timing

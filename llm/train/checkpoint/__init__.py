"""Checkpoints of training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llm.runtime import env

if TYPE_CHECKING:
    from llm.train.checkpoint.local import State


def open_state(stage: str, inputs: dict[str, Any]) -> State:
    """Return a run's state on this disk, copied to `LLM_STATE_URL` where that is set.

    Args:
        inputs: JSON values that the run depends on, by name.
    """
    if env.state_url():
        from llm.train.checkpoint.remote import MirroredState

        return MirroredState(stage, inputs)
    from llm.train.checkpoint.local import State

    return State(stage, inputs)

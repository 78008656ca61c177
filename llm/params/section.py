"""The base class of all groups of params, and types that they share."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class Section(BaseModel):
    """A frozen group of params; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def nearest(name: str, names: Collection[str]) -> str:
    """Return the end of a message about an unknown name: the most similar valid one, else all."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return (
        f"; did you mean {close[0]}?"
        if close
        else (f"; known: {', '.join(names)}" if names else "")
    )

"""tuning.yaml: the search of `python -m llm tune`, checked before anything runs."""

from __future__ import annotations

import math
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from llm import params
from llm.errors import UserError
from llm.params import Section
from llm.runtime.io import read_yaml

NAME = "^[A-Za-z0-9][A-Za-z0-9_-]*$"


class Range(Section):
    """Values from `low` to `high` inclusive; whole numbers if both are whole."""

    low: float | int
    high: float | int
    log: bool = False
    step: Annotated[float, Field(gt=0)] | Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"expected low < high, and low > 0 with log; found {self.low} to {self.high}"
            )
        if self.log and self.step:
            raise ValueError("log and step do not go together")
        return self

    def holds(self, value: Any) -> bool:
        """Return True if the value may be drawn."""
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not self.low <= value <= self.high
        ):
            return False
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        step = self.step or (1 if whole else None)
        return step is None or math.isclose(
            (value - self.low) / step, round((value - self.low) / step), abs_tol=1e-9
        )


class Prune(Section):
    """Stop a trial whose validation loss is above the others' median after as many tokens."""

    stage: Literal["pretrain", "finetune"]
    startup_trials: Annotated[int, Field(ge=1)] = 4  # never stopped: the median needs some
    warmup_tokens: Annotated[int, Field(ge=0)] = 0  # no trial is stopped before


Choices = Annotated[list[str | bool | int | float], Field(min_length=1)]


class Tuning(Section):
    """The content of tuning.yaml."""

    study: Annotated[str, Field(pattern=NAME)]
    metric: Annotated[str, Field(pattern=r"^[^:]+\.json:[^:]+$")]
    direction: Literal["minimize", "maximize"] = "minimize"
    trials: Annotated[int, Field(gt=0)]
    targets: Annotated[list[str], Field(default_factory=list)]
    seed: int = 0
    space: Annotated[dict[str, Range | Choices], Field(min_length=1)]
    prune: Prune | None = None


def load(path: Path) -> Tuning:
    """Return the checked file; both ends of every range are valid params.

    Raises:
        UserError: the file is missing, or one of its keys is unknown or has an invalid value.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; docs/EXPERIMENTS.md has one to begin with.")
    data = read_yaml(path)
    try:
        if not isinstance(data, dict):
            raise UserError(
                f"{path}: expected keys and their values, found {'nothing' if data is None else type(data).__name__}; "
                "docs/EXPERIMENTS.md has one to begin with."
            )
        tuning = Tuning.model_validate(data)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise UserError(f"{path}:\n" + "\n".join(dict.fromkeys(lines))) from None
    data = read_yaml("params.yaml")
    for key, values in tuning.space.items():
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            params.parse(
                _with(data, key, value, f"{path}: space.{key}"),
                f"{path}: space.{key} = {value}: params",
            )
    return tuning


def current(tuning: Tuning) -> dict[str, Any]:
    """Return the values of params.yaml that are in the search space."""
    data = read_yaml("params.yaml")
    values_now = {}
    for key, values in tuning.space.items():
        value = reduce(getitem, key.split("."), data)
        if values.holds(value) if isinstance(values, Range) else value in values:
            values_now[key] = value
    return values_now


def _with(data: dict[str, Any], key: str, value: Any, where: str) -> dict[str, Any]:
    """Return a copy of params with the value at a dotted path; raise UserError if it has none."""
    first, _, rest = key.partition(".")
    if first not in data or (rest and not isinstance(data[first], dict)):
        raise UserError(f"{where}: params.yaml has no {first!r} there; it has {', '.join(data)}.")
    return {**data, first: _with(data[first], rest, value, where) if rest else value}

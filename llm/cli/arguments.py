"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from llm.errors import UserError

if TYPE_CHECKING:
    from llm.generation.loaded_models import Shelf
    from llm.params import Decoding

KINDS = {int: "a whole number", float: "a number"}


def at_least(least: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    """Return the type of an option that is a finite number of at least `least`."""

    def read(text: str) -> float:
        try:
            if least <= (value := kind(text)) < math.inf:
                return value
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r}; expected {KINDS[kind]} of at least {least}")

    return read


def add_models(parser: argparse.ArgumentParser) -> None:
    """Add the options that `directories` reads."""
    parser.add_argument(
        "--base", help="model directory (default: that of finetune.base in params.yaml)"
    )
    parser.add_argument("--finetuned", help="model directory (default: models/finetuned)")
    parser.add_argument(
        "--adapter",
        action="append",
        default=[],
        metavar="[NAME=]DIR",
        help="a PEFT directory on the base; repeatable",
    )


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option of the models' precision."""
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "auto"],
        help="fp32 (default) is what evaluate scores",
    )


def directories(arguments: argparse.Namespace) -> tuple[dict[str, Path], Path | None]:
    """Return the directories of the models that the options name, by name, and that of the base.

    Raises:
        UserError: there are none, or two have one name.
    """
    from llm.generation.loaded_models import default_directories

    defaults = default_directories()
    named = getattr(arguments, "directory", [])
    found = {} if named else dict(defaults)
    for name in ("base", "finetuned"):
        if directory := getattr(arguments, name):
            found[name] = Path(directory)
    for option in [*named, *arguments.adapter]:
        name, _, path = option.rpartition("=")
        path = Path(path)
        name = name or path.name
        if found.get(name, path) != path:
            raise UserError(f"{option}: there is a model called {name!r} already; say NAME={path}.")
        found[name] = path
    if not found:
        raise UserError(
            "there is no models/base and no models/finetuned. Run `make repro`, or name one with --base."
        )
    return found, found.get("base", defaults.get("base"))


def shelf(arguments: argparse.Namespace) -> Shelf:
    """Return the models that the options name, as `directories` does."""
    from llm.generation.loaded_models import Shelf
    from llm.parallel import hardware

    found, _ = directories(arguments)
    device = hardware.device()
    return Shelf(found, device, hardware.precision(arguments.precision, device))


def decoding(arguments: argparse.Namespace) -> Decoding:
    """Return how tokens are chosen, as the options say.

    Raises:
        UserError: the options do not go together.
    """
    from pydantic import ValidationError

    from llm.params import Decoding

    try:
        return Decoding(
            temperature=arguments.temperature,
            top_p=arguments.top_p,
            num_beams=getattr(arguments, "num_beams", 1),
        )
    except ValidationError as error:
        raise UserError(
            "; ".join(f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        ) from None

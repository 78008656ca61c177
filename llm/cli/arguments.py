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
    """Add the options that `shelf` reads."""
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
    add_precision(parser)


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the option of the models' precision."""
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=["fp32", "bf16", "auto"],
        help="fp32 (default) is what evaluate scores",
    )


def shelf(arguments: argparse.Namespace) -> Shelf:
    """Return the models that the options name.

    Raises:
        UserError: there are none, or two have one name.
    """
    from llm.generation.loaded_models import Shelf, default_directories
    from llm.parallel import hardware

    directories = default_directories()
    for name in ("base", "finetuned"):
        if directory := getattr(arguments, name):
            directories[name] = Path(directory)
    for option in arguments.adapter:
        name, _, path = option.rpartition("=")
        path = Path(path)
        name = name or path.name
        if name in directories:
            raise UserError(
                f"--adapter {option}: there is a model called {name!r} already; say NAME={path}."
            )
        directories[name] = path
    if not directories:
        raise UserError(
            "there is no models/base and no models/finetuned. Run `make repro`, or name one with --base."
        )
    device = hardware.device()
    return Shelf(directories, device, hardware.precision(arguments.precision, device))


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

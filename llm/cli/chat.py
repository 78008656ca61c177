"""Talk to the models in the terminal."""

from __future__ import annotations

import argparse
import sys

from llm.cli.arguments import add_models, add_precision, at_least, decoding, shelf
from llm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    add_precision(parser)
    parser.add_argument("--model", help="who answers first (default: finetuned, else base)")
    parser.add_argument("--system", default="", help="what stands above the conversation")
    parser.add_argument(
        "--max-new-tokens", type=int, default=256, help="of an answer (default: %(default)s)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, help="0 (default): the likeliest token"
    )
    parser.add_argument(
        "--top-p", type=float, help="draw among the likeliest tokens of this probability together"
    )
    parser.add_argument(
        "--seed", type=at_least(0), help="of the draws (default: another one each time)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read lines and answer them until /quit or the input's end.

    Raises:
        UserError: the first model or an option cannot be used. Later errors are printed and the
            conversation continues.
    """
    from llm.generation.conversation import Conversation

    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {arguments.max_new_tokens}; expected at least 1.")
    models = shelf(arguments)
    first = arguments.model or ("finetuned" if "finetuned" in models.directories else "base")
    talk = Conversation(
        models,
        first,
        decoding(arguments),
        arguments.max_new_tokens,
        arguments.system,
        arguments.seed,
    )
    if sys.stdin.isatty():
        import readline  # noqa: F401 - input() then edits lines and remembers them

        print(
            f"{talk.named.name} answers; there are {', '.join(models.directories)}. /help says what else."
        )
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip() == "/quit":
            return
        try:
            talk.take(line)
        except UserError as error:
            print(f"error: {error}", flush=True)

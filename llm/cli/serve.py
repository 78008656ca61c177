"""Serve OpenAI's HTTP interface, and a page to talk to two models side by side."""

from __future__ import annotations

import argparse

from llm.cli.arguments import add_models, shelf
from llm.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_models(parser)
    parser.add_argument(
        "--port", type=int, default=8000, help="on 127.0.0.1; 0: a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--rows",
        type=int,
        default=8,
        help="answers side by side, of each model (default: %(default)s)",
    )
    parser.add_argument(
        "--queue",
        type=int,
        default=32,
        help="requests that may wait for a row (default: %(default)s)",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        default=4096,
        help="tokens of prompt and answer (default: %(default)s)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=1024, help="tokens of an answer (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        UserError: a model cannot be read, the port is taken, a limit is below 1, or the server's
            packages are missing.
    """
    for option in ("rows", "max_length", "max_tokens"):
        if getattr(arguments, option) < 1:
            raise UserError(
                f"--{option.replace('_', '-')} is {getattr(arguments, option)}; expected at least 1."
            )
    if arguments.queue < 0:
        raise UserError(f"--queue is {arguments.queue}; expected at least 0.")
    try:
        from llm.server.serve import serve
    except ImportError as error:
        raise UserError(f"{error}: pip install -c constraints.txt -e '.[serve]'") from None
    serve(
        lambda: shelf(arguments),
        arguments.port,
        arguments.rows,
        arguments.queue,
        arguments.max_length,
        arguments.max_tokens,
    )

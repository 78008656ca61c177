"""Serve OpenAI's HTTP interface, and a page to talk to two models side by side."""

from __future__ import annotations

import argparse

from llm.cli.arguments import add_models, at_least, directories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory",
        nargs="*",
        metavar="[NAME=]DIRECTORY",
        help="models, and adapters on --base, to serve (default: base and finetuned)",
    )
    add_models(parser)
    parser.add_argument(
        "--type",
        default="f32",
        choices=["f32", "f16", "q8_0"],
        help="of the weights; f32 (default) is what evaluate scores, q8_0 is llama.cpp's alone",
    )
    parser.add_argument(
        "--port", type=int, default=8000, help="on 127.0.0.1; 0: a free one (default: %(default)s)"
    )
    for name, least, default, purpose in (
        ("rows", 1, 8, "answers side by side, of each model"),
        ("queue", 0, 32, "requests that may wait for a row"),
        ("max-length", 1, 4096, "tokens of prompt and answer"),
        ("max-tokens", 1, 1024, "tokens of an answer"),
        ("threads", 0, 0, "of each model in llama.cpp; 0: the idle cores"),
    ):
        parser.add_argument(
            f"--{name}",
            type=at_least(least),
            default=default,
            help=f"{purpose} (default: %(default)s)",
        )


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        UserError: the port is taken, a model cannot be served, or a package is missing.
    """
    from llm.parallel import hardware
    from llm.server.runtimes import Settings, sources
    from llm.server.serve import serve

    found, base = directories(arguments)
    settings = Settings(
        arguments.type,
        hardware.device().type,
        len(found),
        arguments.threads,
        arguments.rows,
        arguments.queue,
        arguments.max_length,
        arguments.max_tokens,
    )
    serve(sources(found, base), arguments.port, settings)

"""`python -m llm serve`."""

from __future__ import annotations

import argparse
import asyncio
import socket
from contextlib import suppress

from llm.commands.arguments import add_models, shelf
from llm.errors import UserError

HOST = "127.0.0.1"  # there are no accounts, so nobody but this machine may ask
GRACE = 5  # seconds that answers under way may take when the server is to end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `run`."""
    add_models(parser)
    parser.add_argument("--port", type=int, default=8000, help="on 127.0.0.1; 0: a free one (default: %(default)s)")
    parser.add_argument(
        "--rows", type=int, default=8, help="answers side by side, of each model (default: %(default)s)"
    )
    parser.add_argument("--queue", type=int, default=32, help="requests that may wait for a row (default: %(default)s)")
    parser.add_argument(
        "--max-length", type=int, default=4096, help="tokens of prompt and answer (default: %(default)s)"
    )
    parser.add_argument("--max-tokens", type=int, default=1024, help="tokens of an answer (default: %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        UserError: a model cannot be read, the port is taken, a limit is below 1, or the server's packages are missing.
    """
    for option in ("rows", "max_length", "max_tokens"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} is {getattr(arguments, option)}; expected at least 1.")
    if arguments.queue < 0:
        raise UserError(f"--queue is {arguments.queue}; expected at least 0.")
    try:
        import uvicorn

        from llm.server.app import application
    except ImportError as error:
        raise UserError(f"{error}: pip install -c constraints.txt -e '.[serve]'") from None
    from llm.server.engine import Engine

    place = _socket(arguments.port)  # before the models are read, which takes longer
    models = shelf(arguments)
    engine = Engine(
        [models.get(name) for name in models.directories], arguments.rows, arguments.max_length, arguments.queue
    )
    app = application(engine, arguments.max_tokens, arguments.rows + arguments.queue)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE))
    address = f"http://{HOST}:{place.getsockname()[1]}"
    for name, lane in engine.lanes.items():
        print(
            f"serve: {name:12} {models.directories[name]} · {lane.slots} tokens, {lane.rows} answers at a time · "
            f"cache {lane.cache_bytes / 1e6:,.0f} MB"
        )
    place.listen()  # a client that connects as soon as it reads the address waits instead of being refused
    print(f"serve: {address}/ to talk to them · {address}/v1 for OpenAI's clients · Ctrl-C to end", flush=True)
    with suppress(KeyboardInterrupt):  # which uvicorn raises once everything is closed
        asyncio.run(server.serve([place]))


def _socket(port: int) -> socket.socket:
    """A bound socket. Raises UserError where the port is taken or not allowed."""
    place = socket.socket()
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((HOST, port))
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} of {HOST} cannot be used ({error}); choose another with --port.") from None
    return place

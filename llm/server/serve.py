"""The HTTP server's life: bind the port, load the models, serve until a signal."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from llm.errors import UserError
from llm.generation.loaded_models import Shelf
from llm.server.app import application
from llm.server.engine import Engine

HOST = "127.0.0.1"  # there are no accounts, so nobody but this machine may ask
GRACE = 5  # seconds that answers under way may take when the server is to end


def serve(
    load: Callable[[], Shelf], port: int, rows: int, queue: int, max_length: int, max_tokens: int
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        load: returns the models; called once the port is known to be free.
        port: of 127.0.0.1; 0 for a free one.
        rows: answers side by side, of each model.
        queue: requests that may wait for a row.
        max_length: tokens of prompt and answer.
        max_tokens: tokens of an answer.

    Raises:
        UserError: a model cannot be read, or the port is taken.
    """
    listener = _socket(port)  # before the models are read, which takes longer
    models = load()
    engine = Engine(
        [models.get(name) for name in models.directories],
        rows,
        max_length,
        queue,
    )
    app = application(engine, max_tokens, rows + queue)
    server = uvicorn.Server(
        uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
    )
    address = f"http://{HOST}:{listener.getsockname()[1]}"
    for name, lane in engine.lanes.items():
        print(
            f"serve: {name:12} {models.directories[name]} · {lane.slots} tokens, {lane.rows} answers at a time · "
            f"cache {lane.cache_bytes / 1e6:,.0f} MB"
        )
    # A client that connects as soon as it reads the address waits instead of being refused.
    listener.listen()
    print(
        f"serve: {address}/ to talk to them · {address}/v1 for OpenAI's clients · Ctrl-C to end",
        flush=True,
    )
    with suppress(KeyboardInterrupt):  # which uvicorn raises once everything is closed
        asyncio.run(server.serve([listener]))


def _socket(port: int) -> socket.socket:
    """Return a bound socket; raise UserError if the port is taken or not allowed."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except (OSError, OverflowError) as error:
        raise UserError(
            f"port {port} of {HOST} cannot be used ({error}); choose another with --port."
        ) from None
    return listener

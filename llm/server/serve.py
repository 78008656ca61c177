"""The server's life: bind the port, start a runtime for each model, serve until a signal."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from aiohttp import ClientError, web

from llm.errors import UserError
from llm.server.front import Front, connection
from llm.server.runtimes import Served, Settings, Source, prepare

HOST = "127.0.0.1"  # there are no accounts, so nobody but this machine may ask
GRACE = 5  # seconds that answers under way may take when the server is to end
POLL = 0.1  # seconds between two looks at the runtimes


def serve(sources: Mapping[str, Source], port: int, settings: Settings) -> None:
    """Serve models by name until SIGINT or SIGTERM.

    Args:
        port: of 127.0.0.1; 0 for a free one.

    Raises:
        UserError: the port is taken, a model cannot be served, or a runtime ends.
    """
    listener = _socket(port)  # before the models are read, which takes longer
    with tempfile.TemporaryDirectory(prefix="llm-serve-") as folder:  # its user's alone
        models = [
            prepare(name, source, Path(folder, f"{i}.sock"), settings)
            for i, (name, source) in enumerate(sources.items())
        ]
        with _running(models) as processes:
            asyncio.run(_serve(models, processes, listener, settings))


async def _serve(
    models: Sequence[Served],
    processes: Sequence[subprocess.Popen[bytes]],
    listener: socket.socket,
    settings: Settings,
) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    runner = web.AppRunner(
        Front(models, settings).application(),
        access_log=None,
        handler_cancellation=True,  # a client that goes away frees its place
        shutdown_timeout=GRACE,
    )
    try:
        for model, process in zip(models, processes, strict=True):
            await _ready(model, process)
            print(f"serve: {model.name:12} {model.runtime} · {model.length} tokens")
        await runner.setup()
        await web.SockSite(runner, listener).start()
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        print(
            f"serve: {address}/ to talk to them · {address}/v1 for OpenAI's clients · Ctrl-C to end",
            flush=True,
        )
        while True:
            for model, process in zip(models, processes, strict=True):
                _lives(model, process)
            await asyncio.sleep(POLL)
    except asyncio.CancelledError:
        pass  # a signal asked the server to stop
    finally:
        await runner.cleanup()


async def _ready(model: Served, process: subprocess.Popen[bytes]) -> None:
    """Wait until a runtime answers."""
    async with connection(model) as session:
        while True:
            _lives(model, process)
            with suppress(ClientError, OSError):
                async with session.get("http://runtime/health") as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(POLL)


def _lives(model: Served, process: subprocess.Popen[bytes]) -> None:
    if (code := process.poll()) is not None:
        raise UserError(
            f"{model.runtime}, which serves {model.name}, ended with code {code}; its messages are above."
        )


@contextmanager
def _running(models: Sequence[Served]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start the runtimes; end them with the block."""
    # Threads that wait without spinning: beside a busy process spinning ones lose nearly all of their speed.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for model in models:
            # In a session of their own: Ctrl-C reaches this process, which ends them in its turn.
            processes.append(
                subprocess.Popen(model.command, env=environment, start_new_session=True)
            )
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):  # Ctrl-C again: at once
                process.wait(GRACE)
            process.kill()
            process.wait()


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

"""`python -m llm ui`: MLflow's UI with one worker, and a link that opens on the runs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import psutil

from llm import params
from llm.addresses import public
from llm.errors import UserError
from llm.tracking import executions

HOST, PORT = "127.0.0.1", 5000
START_SECONDS = 90.0  # a cold start takes about 10 s
STOP_SECONDS = 10.0  # until a server that was asked to end is killed


def start() -> None:
    """Serve the store of this repository until Ctrl-C or SIGTERM; print a link to it.

    Raises:
        UserError: there is no store yet, or the server does not start.
    """
    uri, name = executions.store_uri(), params.load().tracking.experiment
    check_store(uri)
    from llm.tracking.mlflow_store import Store

    experiment = Store(uri).experiment_id(name)
    if experiment is None:
        raise UserError(
            f"{uri} has no experiment {name!r} (tracking.experiment) yet. Run `make repro` first."
        )
    if uri.startswith(("http://", "https://")):
        print(f"MLflow runs at {public(uri)} already. Open {link(public(uri), experiment)}")
        return
    port = free_port(PORT)
    own = environment() | {"MLFLOW_BACKEND_STORE_URI": uri}
    with subprocess.Popen(command(port), env=own) as server:
        try:
            wait_for(port, server)
            print(
                f"\nOpen {link(f'http://{HOST}:{port}', experiment)}\nCtrl-C stops it.", flush=True
            )
            # Not server.wait(): a signal that comes just before that call would be seen at its end.
            while (code := server.poll()) is None:
                time.sleep(0.2)
        except KeyboardInterrupt:
            return
        finally:
            stop(server)
    if code:
        raise UserError(f"`mlflow ui` ended with code {code}; its messages are above.")


def stop(server: subprocess.Popen[bytes]) -> None:
    """End the server and the processes that it started, which may outlive it."""
    try:
        parent = psutil.Process(server.pid)
        processes = [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:  # it ended by itself
        return
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, STOP_SECONDS)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def check_store(uri: str) -> None:
    """Refuse a database file that does not exist: the server would make an empty one."""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        raise UserError(
            f"{uri.removeprefix('sqlite:///')}: no runs yet. Run `make repro` first, "
            "or set MLFLOW_TRACKING_URI to the store that has them."
        )


def link(server: str, experiment: str) -> str:
    """Return the page of an experiment's runs; the UI's own start page shows no runs."""
    page = f"#/experiments/{quote(experiment)}/runs?workflowType=machine_learning&compareRunsMode=CHART"
    return f"{server.rstrip('/')}/{page}"


def command(port: int) -> list[str]:
    """Return the server's command, with one worker: four and the job runners take 1.8 GB.

    The store's address may contain a password, so it comes from the environment: every user of the
    machine can read a command line.
    """
    options = ["--host", HOST, "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *options]


def environment() -> dict[str, str]:
    """Return the server's environment: no job runners, no telemetry, this Python first in PATH."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    light = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": path,
    }
    return {**os.environ, **light}


def free_port(wanted: int) -> int:
    """Return `wanted`, else the first free port of the 20 after it, else any."""
    for port in (*range(wanted, wanted + 21), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise UserError(f"no free port on {HOST}")


def wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    """Return when the server accepts connections.

    Raises:
        UserError: it ended, or accepts none within START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(
                f"`mlflow ui` ended with code {server.returncode}; its messages are above."
            )
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.2)
    raise UserError(f"`mlflow ui` did not answer on port {port} in {START_SECONDS:.0f} s.")

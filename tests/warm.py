"""Commands without their start-up: one process has imported the heavy libraries, and forks for each command.

A stage of a tiny pipeline imports torch, MLflow and the like for three seconds and works for less
than one; DVC imports for another. `programs()` is a folder for the PATH with a `python` and a `dvc`
that hand a command (arguments, folder, environment, streams) to that process, wait, and end as the
command ended. Only libraries are imported beforehand: `llm` and `stages` come from wherever the
command would find them.

A forked command differs from a process of its own: its parent is not the program that asked for it,
so it knows of no DVC above it; its command line is the server's; its hash seed is too. Tests of
such things, and one run of the whole pipeline, take `sys.executable` and the `dvc` beside it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import marshal
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import uuid
from pathlib import Path
from typing import NoReturn

# Modules that stages and DVC import and that take more than a few hundredths of a second.
HEAVY = (
    "torch._dynamo",
    "torch.distributed.fsdp",
    "alembic.command",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "sqlalchemy.dialects.sqlite",
    "pandas",
    "pyarrow.dataset",
    "datasketch",
    "scipy.optimize",
    "sklearn.feature_extraction.text",
    "rouge_score.rouge_scorer",
    "sacrebleu",
    "matplotlib.pyplot",
    "safetensors.torch",
    "tiktoken",
    "tokenizers",
    "pydantic",
    "dvc.cli",
    "dvc.repo",
)

# Folders of installed libraries.
INSTALLED = [
    path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)
]

# Without the modules json and socket, which take longer to import than the rest.
PROGRAM = """#!{python} -IS
import _socket, marshal, os, signal, sys
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect({address!r})
streams = b"".join(fd.to_bytes(4, sys.byteorder) for fd in (0, 1, 2))
job = marshal.dumps(({name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)))
server.sendmsg([len(job).to_bytes(4, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
server.sendall(job)
status = int.from_bytes(server.recv(4), "big", signed=True)
if status < 0:
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
"""


@functools.cache
def programs() -> Path:
    """Return the folder of `python` and `dvc`; elsewhere than on Linux that of the usual ones.

    All processes of pytest-xdist share a server. It ends with the one that started them.
    """
    if sys.platform != "linux":
        return Path(sys.executable).parent
    from filelock import FileLock

    shared = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if shared else os.getpid()
    folder = Path(tempfile.gettempdir()) / f"llm-warm-{shared or uuid.uuid4().hex}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            folder.mkdir()
            server = subprocess.Popen(
                [sys.executable, __file__, str(folder), str(owner)],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            for name in ("python", "dvc"):
                text = PROGRAM.format(python=sys.executable, address=f"{folder}/socket", name=name)
                (folder / name).write_text(text)
                (folder / name).chmod(0o755)
    return folder


def python() -> str:
    """Return the `python` of `programs()`."""
    return str(programs() / "python")


def serve(folder: Path, owner: int) -> None:
    """Fork for each command that comes through the socket, until process `owner` ends."""
    for name in HEAVY:
        importlib.import_module(name)
    names = [
        Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")
    ]
    # A fork copies no threads. Arrow's allocator restarts its own; any other would be lost.
    assert [name for name in names if "jemalloc" not in name] == ["python\n"], names
    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(f"{folder}/socket")
    listening.listen(64)
    print("ready", flush=True)
    os.dup2(0, 1)

    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(over := os.pidfd_open(owner), select.POLLIN)
    # Each running command, under the descriptor of its process and under that of its connection.
    running: dict[int, tuple[int, int, socket.socket]] = {}
    while (ready := poll.poll()[0][0]) != over:
        if ready == listening.fileno():
            connection, _ = listening.accept()
            try:
                job, streams = receive(connection)
            except EOFError:  # the program was killed meanwhile
                connection.close()
                continue
            pid = os.fork()
            if pid == 0:
                become(*job, streams)
            for stream in streams:
                os.close(stream)
            ended = os.pidfd_open(pid)
            for descriptor in (ended, connection.fileno()):
                poll.register(descriptor, select.POLLIN)
                running[descriptor] = (pid, ended, connection)
            continue
        pid, ended, connection = running[ready]
        if ready != ended:  # the program that asked for it was killed
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        for descriptor in (ended, connection.fileno()):
            poll.unregister(descriptor)
            del running[descriptor]
        with contextlib.suppress(OSError):
            connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, "big", signed=True))
        connection.close()
        os.close(ended)
    for pid, *_ in running.values():
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)
    folder.with_suffix(".lock").unlink()


def receive(
    connection: socket.socket,
) -> tuple[tuple[str, list[str], str, dict[str, str]], list[int]]:
    """Return a program's name, its arguments, its folder and environment; and its three streams."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    data = b""
    while len(data) < int.from_bytes(size, "big"):
        if not (part := connection.recv(1 << 20)):
            break
        data += part
    return marshal.loads(data), streams  # noqa: S302  from a program of ours


def become(
    name: str, arguments: list[str], folder: str, environment: dict[str, str], streams: list[int]
) -> NoReturn:
    """Run `python` or `dvc` in this forked process, and end it."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # With it the server would be taken for the DVC that runs the command, and be kept out with it.
    os.environ.pop("DVC_STAGE", None)
    sys.path[:] = [
        folder,
        *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep)),
        *INSTALLED,
    ]
    status = 1
    try:
        run(name, arguments)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
        else:
            status = error.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(name: str, arguments: list[str]) -> None:
    """Run `-m MODULE`, `-c CODE` or FILE as the interpreter does, or the program `dvc`."""
    if name == "dvc":
        from dvc.cli import main

        sys.argv = ["dvc", *arguments]
        sys.exit(main())
    option = arguments[0]
    if option == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *arguments[2:]]
        exec(arguments[1], {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path[0] = str(Path(option).parent)
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))

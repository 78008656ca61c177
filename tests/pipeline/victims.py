"""A process that runs stages in forked children and harms them: `python -m tests.pipeline.victims`.

It is itself forked from `tests.warm`, so that a kill and its resumption cost a second instead of ten.
A job is a line of JSON on standard input, the answer a line on standard output:

    job     {"stage", "cwd", "kill", "full"}
    kill    null | {"point", "function", "nth", "when": "before" | "within" | "after", "signal"} |
    {"seconds"} full    null | {"path", "first", "calls"} | {"limit": bytes}
    answer  {"killed": null | what hit, "status": exit status, "trace": [[point, function, seconds],
    ...], "began"}

A point is a call that a checkpoint or an output is made of: see `POINTS`. `nth` counts the
project's own calls of that point, of `function` alone where one is given. "within" leaves half of
the data behind. `full` lets every write under a path that contains `path` fail as on a full disk,
from the `first` on and `calls` times; `limit` sets the largest file that the kernel allows (`ulimit
-f`)."""

from __future__ import annotations

import builtins
import errno
import functools
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

POINTS = ("write", "fsync", "replace", "rename", "mkdir", "rmtree", "save_file")
PARTIAL = ("write", "save_file")  # those that a kill can leave half-done
ROOM = ("write", "fsync", "mkdir", "save_file")  # those that a full disk refuses
MODULES = ("llm.tracking.run", "llm.data.examples", "llm.train.trainer")  # of each stage


def caller() -> str:
    """The innermost function of the project that is not a helper of `llm.runtime.io`, e.g.
    `llm.train.checkpoint.local.State._write`.
    """
    frame, found = sys._getframe(2), ""
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith(("llm.", "stages.")):
            found = f"{module}.{frame.f_code.co_qualname}"
            if module != "llm.runtime.io":
                break
        frame = frame.f_back  # type: ignore[assignment]
    return found


def place(argument: Any) -> str:
    """The path that a call is about."""
    return os.readlink(f"/proc/self/fd/{argument}") if isinstance(argument, int) else str(argument)


class Harm:
    """Counts the calls that touch the disk, and does at the chosen ones what the job says."""

    def __init__(
        self, kill: dict[str, Any] | None, full: dict[str, Any] | None, record: int
    ) -> None:
        self.kill, self.full, self.record = kill or {}, full or {}, record
        self.began, self.calls, self.refused, self.lock = time.monotonic(), 0, 0, threading.Lock()

    def note(self, **what: Any) -> None:
        os.write(self.record, (json.dumps(what) + "\n").encode())

    def die(self, point: str, function: str) -> None:
        self.note(killed={"point": point, "when": self.kill["when"], "function": function})
        os.kill(os.getpid(), self.kill.get("signal", signal.SIGKILL))

    def refuses(self, point: str, path: str) -> bool:
        if point not in ROOM or self.full.get("path", "\0") not in path:
            return False
        self.refused += 1
        return 0 <= self.refused - self.full["first"] < self.full["calls"]

    def around(
        self,
        point: str,
        real: Callable[..., Any],
        half: Callable[..., Any],
        path: Callable[..., str],
    ) -> Any:
        """`real`, counted; `half(*args)` does half of it, `path(*args)` says where."""

        @functools.wraps(real)
        def counted(*args: Any, **kwargs: Any) -> Any:
            function = caller()
            if not function:
                return real(*args, **kwargs)
            with self.lock:
                counts = (
                    point == self.kill.get("point")
                    and self.kill.get("function", function) == function
                )
                self.calls += counts
                here = counts and self.calls == self.kill["nth"]
                self.note(call=[point, function, time.monotonic() - self.began])
                full = self.refuses(point, path(*args))
            if here and self.kill["when"] == "before":
                self.die(point, function)
            if full or (here and self.kill["when"] == "within"):
                half(*args, **kwargs)
            if here and self.kill["when"] == "within":
                self.die(point, function)
            if full:
                raise refusal(point, path(*args))
            try:
                return real(*args, **kwargs)
            finally:  # also where it failed, as a mkdir of what exists
                if here and self.kill["when"] == "after":
                    self.die(point, function)

        return counted

    def arm(self) -> None:
        import safetensors.torch

        import llm.runtime.io

        def nothing(*args: Any, **kwargs: Any) -> None:
            pass

        def first(*args: Any) -> str:
            return place(args[0])

        for name in ("fsync", "replace", "rename", "mkdir"):
            setattr(os, name, self.around(name, getattr(os, name), nothing, first))
        shutil.rmtree = self.around("rmtree", shutil.rmtree, nothing, first)

        save = safetensors.torch.save_file

        def half_saved(tensors: Any, path: Any, **kwargs: Any) -> None:
            save(tensors, path, **kwargs)
            os.truncate(path, os.path.getsize(path) // 2)

        safetensors.torch.save_file = self.around(
            "save_file", save, half_saved, lambda _, path: str(path)
        )

        def opened(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            file = builtins.open(path, mode, *args, **kwargs)  # noqa: SIM115  the caller's `with` closes it
            if "w" in mode:
                real = file.write

                def half_written(data: Any) -> None:
                    real(data[: len(data) // 2])
                    file.flush()

                file.write = self.around("write", real, half_written, lambda _: str(path))  # type: ignore[method-assign]
            return file

        llm.runtime.io.open = opened  # type: ignore[attr-defined]
        if "limit" in self.full:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.full["limit"], self.full["limit"]))


def refusal(point: str, path: str) -> Exception:
    """What is raised on a full disk: by safetensors an error of its own, by writing to a file one
    without a name.
    """
    from safetensors import SafetensorError

    reason = os.strerror(errno.ENOSPC)
    if point == "save_file":
        return SafetensorError(
            f"Error while serializing: I/O error: {reason} (os error {errno.ENOSPC})"
        )
    return (
        OSError(errno.ENOSPC, reason, path) if point == "mkdir" else OSError(errno.ENOSPC, reason)
    )


def child(job: dict[str, Any], record: int) -> None:
    """Run a stage as `python -m stages.<name>` would, in this process."""
    os.chdir(job["cwd"])
    log = os.open("child.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        from llm.runtime.stage import run_stage

        Harm(job["kill"], job["full"], record).arm()
        run_stage(importlib.import_module(f"stages.{job['stage']}").main)
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def harm(job: dict[str, Any]) -> dict[str, Any]:
    """Fork, wait, and tell what became of the child."""
    with tempfile.TemporaryFile() as record:
        began = time.monotonic()
        if (pid := os.fork()) == 0:
            child(job, record.fileno())
        seconds = (job["kill"] or {}).get("seconds")
        timer = threading.Timer(seconds or 0.0, os.kill, (pid, signal.SIGKILL))
        if seconds is not None:
            timer.start()
        _, status = os.waitpid(pid, 0)
        if seconds is not None:
            timer.cancel()
            timer.join()
        record.seek(0)
        notes = [json.loads(line) for line in record]
    trace = [note["call"] for note in notes if "call" in note]
    killed = next((note["killed"] for note in notes if "killed" in note), None)
    if os.WIFSIGNALED(status) and killed is None:
        killed = {
            "point": "time",
            "when": "at",
            "function": trace[-1][1] if trace else "before the first call",
        }
    return {
        "killed": killed,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "status": os.waitstatus_to_exitcode(status),
        "trace": trace,
        "seconds": time.monotonic() - began,
    }


def main() -> None:
    import torch

    for name in MODULES:
        importlib.import_module(name)

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        print(json.dumps(harm(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()

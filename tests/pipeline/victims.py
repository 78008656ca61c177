"""A process that runs stages in forked children and kills them: `python -m tests.pipeline.victims`.

It imports the heavy libraries once, so that a kill and its resumption cost a second instead of ten. A job is a line of
JSON on standard input: {"stage", "cwd", "kill": null | {"call": n, "after": bool} | {"seconds": t}}; the answer is a
line {"killed": bool, "status": int, "calls": n}.

`call` n counts what a checkpoint or an output is made of: fsync, rename, replace, mkdir, rmtree and the writing of
weights. The child dies by SIGKILL right before or right after that call.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Bomb:
    """Counts the calls that touch the disk and kills the process at the chosen one."""

    def __init__(self, kill: dict[str, Any] | None, tally: Path) -> None:
        self.kill, self.tally, self.calls, self.lock = kill or {}, tally, 0, threading.Lock()

    def wrap(self, owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(real)
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                self.calls += 1
                here = self.calls == self.kill.get("call")
                self.tally.write_text(str(self.calls))
            if here and not self.kill["after"]:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **kwargs)
            if here:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, counted)

    def arm(self) -> None:
        import safetensors.torch

        for name in ("fsync", "replace", "rename", "mkdir"):
            self.wrap(os, name)
        self.wrap(shutil, "rmtree")
        self.wrap(safetensors.torch, "save_file")
        if seconds := self.kill.get("seconds"):
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()


def child(job: dict[str, Any], tally: Path) -> None:
    """Run a stage as `python -m stages.<name>` would, in this process."""
    os.chdir(job["cwd"])
    log = os.open("child.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    status = 1
    try:
        Bomb(job["kill"], tally).arm()
        importlib.import_module(f"stages.{job['stage']}").main()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def main() -> None:
    import torch

    for name in ("mlflow.tracking.fluent", "safetensors.torch", "llm.data.packing", "llm.model.lora", "llm.train.loop"):
        importlib.import_module(name)

    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        tally = Path(job["cwd"]) / "calls.txt"
        tally.write_text("0")
        began = time.monotonic()
        if (pid := os.fork()) == 0:
            child(job, tally)
        _, status = os.waitpid(pid, 0)
        answer = {
            "killed": os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL,
            "status": status,
            "calls": int(tally.read_text() or 0),
            "seconds": time.monotonic() - began,
        }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""Launch of a training stage on all devices of this machine, by torchrun's own engine."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable

import psutil

from llm.errors import UserError
from llm.parallel import gpu_lease
from llm.runtime import env
from llm.runtime.parent_watch import end_with

# Seconds for the last step and its checkpoint after SIGTERM; torchelastic's default is 30.
STOPPING = "300"
RESTARTS = 3  # after processes that a signal ended, such as the kernel's when memory runs out


def process_count() -> int:
    """Return `LLM_PROCESSES`, else the number of CUDA devices, or 1 if `LLM_DEVICE` is set.

    Raises:
        UserError: `LLM_PROCESSES` is not a positive number, or it is above 1 and `LLM_DEVICE` names
            one device.
    """
    count, device = env.processes(), env.device()
    if count is not None:
        if count > 1 and ":" in (device or ""):
            raise UserError(
                f"LLM_PROCESSES={count} needs as many devices, and LLM_DEVICE={device} names one: "
                "unset one of them, or choose the devices with CUDA_VISIBLE_DEVICES."
            )
        return count
    if device:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def on_all_devices(main: Callable[[], None], module: str) -> Callable[[], None]:
    """Return a function that runs `main`, on several devices in a process each.

    It starts no processes if torchrun did.

    Args:
        module: the module that runs `main` by `python -m`.
    """

    def run() -> None:
        if "TORCHELASTIC_RUN_ID" in os.environ:  # one of several, of this launcher's or of torchrun
            end_with(psutil.Process(os.getppid()))
        cores = gpu_lease.take()
        if "WORLD_SIZE" in os.environ or (count := process_count()) == 1:
            main()
        else:
            _launch(module, count, cores or os.cpu_count() or 1)

    return run


def _launch(module: str, count: int, cores: int) -> None:
    """Run `python -m module` in `count` processes; restart all if a signal ended one.

    They resume from the last state. Each process prints its own error, so this adds no message.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", STOPPING)
    # It would repeat each failure at length.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    # Each process takes its share of the cores (torchrun gives it one): more threads would wait for
    # one another.
    if os.environ.get("OMP_NUM_THREADS") in (None, str(cores)):
        os.environ["OMP_NUM_THREADS"] = str(max(1, cores // count))
    for attempt in range(RESTARTS + 1):
        with tempfile.TemporaryDirectory(prefix="llm-launch-") as notes:
            config = LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=count,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",
                run_id=f"{os.getpid()}-{attempt}",
                max_restarts=0,  # after an error of the user's as well as after a signal
                monitor_interval=0.1,
                logs_specs=DefaultLogsSpecs(log_dir=notes),
            )
            try:
                elastic_launch(config, sys.executable)("-m", module)
                return
            except SignalException as error:  # the processes were asked to end, and did
                sys.exit(128 + int(error.sigval))
            except ChildFailedError as error:
                # When one ends, the others get SIGTERM: only another signal came from outside.
                failures = error.failures.values()
                ended = [f for f in failures if f.exitcode < 0 and f.exitcode != -signal.SIGTERM]
        if not ended or attempt == RESTARTS:
            sys.exit(1)
        print(
            f"{module}: process {ended[0].local_rank} of {count} was ended by {ended[0].signal_name()}; all start "
            f"again from the last state ({attempt + 1} of {RESTARTS})",
            file=sys.stderr,
            flush=True,
        )

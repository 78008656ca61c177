"""Time and memory of a stage: `metrics/timing/<stage>.json`.

They change from run to run, so no stage but `report` reads them and DVC does not track them.
"""

from __future__ import annotations

import platform
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llm.runtime import heartbeat
from llm.runtime.io import write_json


@contextmanager
def stage_timing(stage: str) -> Iterator[dict[str, Any]]:
    """Time a stage and show it as running; the caller may add keys such as `mfu` to the dict."""
    started = time.perf_counter()
    timing: dict[str, Any] = {}
    with heartbeat.running(stage):
        yield timing
    timing = {
        "seconds": round(time.perf_counter() - started, 3),
        "peak_memory_bytes": peak_memory_bytes(),
        "device": device_name(),
        **timing,
    }
    write_json(f"metrics/timing/{stage}.json", timing)


def peak_memory_bytes() -> int:
    """Return the peak memory (bytes) of this process plus that of its largest finished child."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )


def device_name() -> str:
    """Return the processor's name; stages that use an accelerator overwrite it."""
    if sys.platform == "linux":
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()

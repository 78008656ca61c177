"""The MLflow run of an execution of the pipeline, which each stage re-opens.

Tracking never stops or slows training. `Run.log_metrics` appends to a list; a thread writes the
list to the store every few seconds. If the store fails, the rest goes to a spool, one file for each
execution, and is sent at the next success. Every write can be repeated without effect (a point of a
curve is its key and step), so resumed stages and replayed spools continue the curves.

MLflow's step of a curve counts tokens, so charts compare runs of different batch sizes. (MLflow can
put another metric on the x-axis, but its charts draw 320 evenly chosen points of a metric: a
validation loss whose `tokens` were not among them vanished, three of four in a run of 635 steps.)
The optimizer's steps are the metric `<stage>/step`.

`llm.tracking.executions` decides without the store which stages belong to one execution, so the
answer is the same when the server is down. `llm.tracking.mlflow_store` writes to the store.
"""

from __future__ import annotations

import json
import numbers
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from llm.addresses import without_credentials
from llm.errors import first_line
from llm.params import Params
from llm.runtime import heartbeat
from llm.runtime.io import sha256, write_json
from llm.runtime.locks import locked
from llm.runtime.state_dirs import repository
from llm.tracking import executions, metrics_files
from llm.tracking.executions import Operation, State
from llm.tracking.mlflow_store import Score, Store, directory_digest

INTERVAL = 5.0  # seconds between writes of a live curve
PATIENCE = 30.0  # seconds the end of a stage waits for a slow store; the rest goes to the spool
RETRY = 60.0  # seconds until a store that failed is tried again
LARGEST_FILE = 32_000_000  # bytes of an artifact; larger ones stay in DVC alone


@contextmanager
def stage(params: Params, name: str) -> Iterator[Run]:
    """Yield the run for stage `name`. An error marks it FAILED until a stage re-opens it."""
    run = Run(executions.current(params, name), name)
    status = heartbeat.current()
    if status:
        status.listener = run.tag_health
    run.tag_health(heartbeat.OK)
    try:
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        run.put({"op": "end", "status": "KILLED" if killed else "FAILED"})
        raise
    finally:
        if status:
            status.report()
            status.listener = None
        run.close()


def finish(
    params: Params,
    files: Sequence[str] = (),
    tables: Sequence[str] = (),
    model: str | None = None,
    score: Score | None = None,
) -> str | None:
    """Complete the run and mark it FINISHED; the next stage that runs begins a new one.

    Adds the curves and scores that cached stages did not log, from `metrics/`.

    Args:
        params: of the execution.
        files: paths to upload; a directory with all its files.
        tables: those of the files that MLflow shows as tables.
        model: the model directory to register.
        score: of the model; it becomes `@champion` of its experiment if it beats the champion.

    Returns:
        The run's id; None if the store could not be reached.
    """
    with stage(params, "report") as run:
        now = executions.now()
        for name, rows in metrics_files.curves().items():
            points = [
                (f"{name}/{key}", value, now, int(row["tokens"]))
                for row in rows
                for key, value in row.items()
                if key != "tokens"
            ]
            run.put({"op": "metrics", "points": points})
        run.put({"op": "scalars", "values": metrics_files.scalars(run.state["started"])})
        run.put({"op": "artifacts", "files": _with_digests(files)})
        logged = [{"path": path, "type": "table"} for path in tables]
        run.put({"op": "tags", "tags": {"mlflow.loggedArtifacts": json.dumps(logged)}})
        weights = Path(model, "model.safetensors") if model else None
        if weights and weights.is_file():
            scored = score or Score(None)
            folder = weights.parent
            about = {"directory": _from_root(folder), "digest": directory_digest(folder)}
            score_of = {k: getattr(scored, k) for k in ("tests", "examples")}
            run.put({"op": "model", **about, "score": scored.value, **score_of})
        run.put({"op": "end", "status": "FINISHED"})
        path = executions.state_path()
        with locked(path.with_suffix(".lock")):
            write_json(path, {**run.state, "open": False})
    return run.run_id


def _with_digests(files: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (path, folder among the artifacts, SHA-256) of each file.

    A spooled upload may run later and must find the same bytes.
    """
    entries = []
    for top in map(Path, files):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.stat().st_size <= LARGEST_FILE:
                folder = path.parent.relative_to(top.parent).as_posix() if top.is_dir() else ""
                entries.append((_from_root(path), folder, sha256(path)))
    return entries


def _from_root(path: Path) -> str:
    """Return the path from the main repository, which may move before a replay."""
    return os.path.relpath(path, repository())


class Run:
    """A queue of what a stage logs, which a thread writes. Only `close` and `run_id` wait."""

    def __init__(self, state: State, stage_name: str) -> None:
        import mlflow  # noqa: F401  not in the thread, where it could collide with torch's import

        self.state, self.stage = state, stage_name
        self._operations: list[Operation] = [
            {"op": "tags", "tags": executions.tags()},
            {"op": "inputs"},
        ]
        self._current: Operation | None = None  # being applied by the store
        self._lock = threading.Lock()
        self._stop, self._tried = threading.Event(), threading.Event()
        self._run_id: str | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._write, name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run, after the store's first answer; None if it is unreachable."""
        self._tried.wait(PATIENCE)
        return self._run_id

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers as `<stage>/<key>`, with a key's own slashes as dots.

        Args:
            metrics: values by key; those that are not numbers are left out.
            step: of a curve; a point that the run has already is not written again. None: the
                value is the key's final one.
        """
        values = {
            f"{self.stage}/{key.replace('/', '.')}": float(value)
            for key, value in metrics.items()
            if isinstance(value, numbers.Real) and not isinstance(value, bool)
        }
        if step is None:
            self.put({"op": "scalars", "values": values})
        else:
            now = executions.now()
            points = [(key, value, now, step) for key, value in values.items()]
            self.put({"op": "metrics", "points": points})

    def tag_health(self, health: str) -> None:
        """Set the tag `llm.health/<stage>`: `ok`, or what is wrong, e.g. a stall."""
        self.put({"op": "tags", "tags": {f"llm.health/{self.stage}": health}})

    def put(self, operation: Operation) -> None:
        """Queue an operation of `Store.apply`."""
        with self._lock:
            last: Operation = self._operations[-1] if self._operations else {"op": ""}
            if operation["op"] == last["op"] == "metrics":
                last["points"].extend(operation["points"])
            else:
                self._operations.append({"time": executions.now(), **operation})

    def close(self) -> None:
        """Write what is left; after `PATIENCE` seconds the rest goes to the spool."""
        self._stop.set()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._warn(f"no answer for {PATIENCE:.0f} s")
        self._to_spool()

    def _write(self) -> None:
        store: Store | None = None
        retry_at = 0.0
        while True:
            stopping = self._stop.is_set()
            if time.monotonic() >= retry_at:
                try:
                    if store is None:
                        store = Store(executions.store_uri())
                        self._run_id = store.open(self.state, resume=True)
                        self._tried.set()
                        store.replay(self.state["execution"])
                    self._drain(store)
                except Exception as error:  # a store may raise anything; training continues
                    self._warn(f"{type(error).__name__}: {first_line(error)[:160]}")
                    store, retry_at = None, time.monotonic() + RETRY
                    self._tried.set()
                    self._to_spool()
            if stopping:
                return
            self._stop.wait(INTERVAL)

    def _drain(self, store: Store) -> None:
        """Apply queued operations in order; one that fails stays the current one."""
        while True:
            with self._lock:
                if not self._operations:
                    return
                self._current = self._operations.pop(0)
            store.apply(self.state, self._current)
            self._current = None

    def _to_spool(self) -> None:
        with self._lock:
            operations = [self._current] if self._current else []
            operations += self._operations
            self._operations, self._current = [], None
        if operations:
            try:
                executions.spool(self.state, operations)
            # On a full disk: the stage's own error must not be hidden by this one.
            except OSError as error:
                line = f"warning: metrics are lost to MLflow, not to metrics/: {error}"
                print(line, file=sys.stderr, flush=True)

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            print(
                f"warning: MLflow at {self.state['store'] or executions.own_store()} does not take metrics "
                f"({without_credentials(reason)}). Work goes on; they are kept in "
                f"{executions.directory() / 'spool'} and sent by the next stage that reaches it.",
                file=sys.stderr,
                flush=True,
            )

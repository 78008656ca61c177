"""MLflow: one flat run per execution of the pipeline, which each stage re-opens.

Tracking never stops or slows training. `Run.log_metrics` appends to a list; a thread writes the
list to the store every few seconds. What the store does not take goes to a spool, one file an
execution, which the next success replays. Every write can be repeated without effect (a point of a
curve is its key and step), so resumed stages and replayed spools join the curves.

MLflow's step of a curve counts tokens: charts compare runs of other batch sizes as they are.
(MLflow can put another metric on the x-axis, but its charts draw 320 points of a metric, evenly
chosen, and a validation loss whose `tokens`
were not among them vanished: of 635 steps three of four.) The optimizer's steps are the metric
    `<stage>/step`.

Which stages belong to one execution is decided by `llm.tracking.executions`, without the store, so
that it holds when the server is down; what is written there, and how, is
`llm.tracking.mlflow_store`."""

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
    """The execution's run, open for stage `name`; an error in the block marks it FAILED until a
    stage re-opens it.
    """
    run = Run(executions.current(params, name), name)
    shown = heartbeat.current()
    if shown:
        shown.listener = run.say_health
    run.say_health(heartbeat.OK)
    try:
        yield run
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt | SystemExit)
        run.put({"op": "end", "status": "KILLED" if killed else "FAILED"})
        raise
    finally:
        if shown:
            shown.report()
            shown.listener = None
        run.close()


def finish(
    params: Params,
    files: Sequence[str] = (),
    tables: Sequence[str] = (),
    model: str | None = None,
    score: Score | None = None,
) -> str | None:
    """Complete the run and mark it FINISHED; the next stage that runs begins a new one.

    Adds the curves and scores that cached stages did not log, from `metrics/`, uploads `files`
    (paths; a directory with all it holds), and has MLflow show those of them that `tables` names as
    tables to filter. Registers the model directory `model`, which becomes `@champion` of its
    experiment where `score` beats that of the champion so far.

    Returns the run's id, or None where the store could not be reached.
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
        shown = [{"path": path, "type": "table"} for path in tables]
        run.put({"op": "tags", "tags": {"mlflow.loggedArtifacts": json.dumps(shown)}})
        weights = Path(model, "model.safetensors") if model else None
        if weights and weights.is_file():
            scored = score or Score(None)
            run.put(
                {
                    "op": "model",
                    "directory": _from_root(weights.parent),
                    "digest": directory_digest(weights.parent),
                    "score": scored.value,
                    "tests": scored.tests,
                    "examples": scored.examples,
                }
            )
        run.put({"op": "end", "status": "FINISHED"})
        path = executions.state_path()
        with locked(path.with_suffix(".lock")):
            write_json(path, {**run.state, "open": False})
    return run.run_id


def _with_digests(files: Sequence[str]) -> list[tuple[str, str, str]]:
    """(path, folder among the artifacts, sha256) of each file; a spooled upload must find the same
    bytes later.
    """
    found = []
    for top in map(Path, files):
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.stat().st_size <= LARGEST_FILE:
                folder = path.parent.relative_to(top.parent).as_posix() if top.is_dir() else ""
                found.append((_from_root(path), folder, sha256(path)))
    return found


def _from_root(path: Path) -> str:
    """The path from the main repository, which may be elsewhere when a spool is replayed."""
    return os.path.relpath(path, repository())


# -- a stage's hold on the run


class Run:
    """Takes what a stage logs and writes it in a thread. Nothing here raises or waits, but `close`
    and `run_id`.
    """

    def __init__(self, state: State, stage_name: str) -> None:
        import mlflow  # noqa: F401  here and not in the thread, where torch's import at the same time could meet it

        self.state, self.stage = state, stage_name
        self._operations: list[Operation] = [
            {"op": "tags", "tags": executions.tags()},
            {"op": "inputs"},
        ]
        self._current: Operation | None = None  # the one that the store is taking
        self._lock = threading.Lock()
        self._stop, self._tried = threading.Event(), threading.Event()
        self._run_id: str | None = None
        self._warned = False
        self._thread = threading.Thread(target=self._write, name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits for the store's first answer, None where it cannot be
        reached.
        """
        self._tried.wait(PATIENCE)
        return self._run_id

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log numbers as `<stage>/<key>`, a key's own slashes as dots; None and what is no number
        is left out.

        With a step, a point of a curve, once: a step that the run has is not repeated. Without, the
            key's final value.
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
            self.put(
                {
                    "op": "metrics",
                    "points": [(key, value, now, step) for key, value in values.items()],
                }
            )

    def say_health(self, health: str) -> None:
        """Tag the run with how the stage goes: `llm.health/<stage>` is `ok`, or what is wrong, e.g.
        that it stalls.
        """
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
        """Write what is left; what the store has not taken after `PATIENCE` seconds goes to the
        spool.
        """
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
                except Exception as error:  # whatever a store may raise, training goes on
                    self._warn(
                        f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
                    )
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
            except (
                OSError
            ) as error:  # a full disk; it must not hide what the stage itself has to say about it
                print(
                    f"warning: metrics are lost to MLflow, not to metrics/: {error}",
                    file=sys.stderr,
                    flush=True,
                )

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

"""The MLflow store: queued operations as calls to MLflow, each of which can be repeated.

Only this module imports mlflow, apart from `llm.tracking.pyfunc_model`, a part of a logged model.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sqlite3
import sys
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlparse
from urllib.request import url2pathname

from llm.addresses import public, without_credentials
from llm.runtime import provenance
from llm.runtime.io import files_digest, sha256
from llm.runtime.locks import locked
from llm.runtime.state_dirs import repository
from llm.tracking import executions
from llm.tracking.executions import Operation, State

T = TypeVar("T")
EXECUTION = "llm.execution"  # the tag by which the store knows an execution
MODEL = "llm.model"  # the tag of a run with the registered version of its model
# Columns of MLflow's tables that contain addresses of artifacts.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
SERVING_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "tiktoken",
    "pydantic",
    "tqdm",
    "pandas",
    "ruamel.yaml",
    "psutil",
)


class Store:
    """The calls to MLflow. Every method may raise whatever the store raises."""

    def __init__(self, uri: str) -> None:
        # Fail in seconds, not in minutes: the spool is the second attempt.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        for name in ("alembic", "mlflow", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        # MLflow logs a traceback of what it raises; the caller prints one line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.uri, self.mlflow = uri, mlflow
        self._ids: dict[str, str] = {}
        self._curves: dict[tuple[str, str], dict[int, float]] = {}
        # The first use of a database makes its tables; two processes at once would crash.
        with locked(executions.directory() / "store.lock"):
            self._make_database()
            self.client = mlflow.MlflowClient(uri)
            self.client.search_experiments(max_results=1)
            if uri == executions.own_store():
                follow(repository())

    def _make_database(self) -> None:
        """Make a missing SQLite database under another name, then rename it: MLflow cannot use half
        a database.
        """
        path = Path(self.uri.removeprefix("sqlite:///"))
        if not self.uri.startswith("sqlite:///") or path.exists() or not path.parent.is_dir():
            return
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # left by a process that was killed
        self.mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.rename(path)

    def experiment_id(self, name: str) -> str | None:
        """Return the id of the experiment called `name`, or None."""
        experiment = self.client.get_experiment_by_name(name)
        return experiment.experiment_id if experiment else None

    def open(self, state: State, resume: bool = False) -> str:
        """Return the run's id; make experiment and run if they do not exist.

        Args:
            state: the execution.
            resume: mark the run as running.
        """
        from mlflow.entities import Param

        with locked(executions.directory() / "store.lock"):
            experiment = self._open_experiment(state["experiment"])
            query = f"tags.`{EXECUTION}` = '{state['execution']}'"
            runs = self.client.search_runs([experiment], query, max_results=1)
            tags = {EXECUTION: state["execution"]}
            started = int(state["started"] * 1000)
            create = self.client.create_run
            run = runs[0] if runs else create(experiment, started, tags, state["name"])
        run_id = run.info.run_id
        if resume and run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        # A third of all params are null, which switches an option off: nothing to compare.
        wanted = {
            _key(key): value[:6000] for key, value in state["params"].items() if value != "null"
        }
        new = [Param(key, value) for key, value in wanted.items() if key not in run.data.params]
        for params in _batches(new, 100):
            self.client.log_batch(run_id, params=params)
        self._ids[state["execution"]] = run_id
        return run_id

    def _open_experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            # A server chooses the folder of artifacts; a database would take the working directory.
            local = not self.uri.startswith(("http:", "https:", "databricks"))
            return self.client.create_experiment(name, artifacts(repository()) if local else None)
        if experiment.lifecycle_stage == "deleted":
            self.client.restore_experiment(experiment.experiment_id)
        return experiment.experiment_id

    def replay(self, current: str) -> None:
        """Write what stages could not, remove their spools; do not end the `current` run."""
        directory = executions.directory() / "spool"
        for path in sorted(directory.glob("*.jsonl")):
            with locked(directory / ".lock"):
                if not path.exists():  # another process was faster
                    continue
                records = executions.read_spool(path)
                own = public(executions.own_store())
                if not records or (records[0]["store"] or own) != public(self.uri):
                    continue
                for operation in records[1:]:
                    if operation["op"] != "end" or records[0]["execution"] != current:
                        self.apply(records[0], operation)
                path.unlink()

    def apply(self, state: State, operation: Operation) -> None:
        """Write one operation (it can be repeated); warn if MLflow finds it invalid."""
        from mlflow.exceptions import MlflowException

        try:
            self._apply(self._ids.get(state["execution"]) or self.open(state), state, operation)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            line = f"warning: MLflow refuses {operation['op']}: {str(error)[:300]}"
            print(without_credentials(line), file=sys.stderr, flush=True)

    def _apply(self, run_id: str, state: State, operation: Operation) -> None:
        from mlflow.entities import RunTag

        match operation["op"]:
            case "metrics":
                self._log_points(run_id, operation["points"])
            case "scalars":
                self._log_scalars(run_id, operation["values"], operation["time"])
            case "tags":
                items = operation["tags"].items()
                for tags in _batches([RunTag(_key(k), value[:8000]) for k, value in items], 100):
                    self.client.log_batch(run_id, tags=tags)
            case "inputs":
                self._log_inputs(run_id)
            case "artifacts":
                for name, folder, digest in operation["files"]:
                    path = repository() / name
                    if path.is_file() and sha256(path) == digest:
                        self.client.log_artifact(run_id, str(path), folder or None)
            case "model":
                self._log_model(run_id, state["experiment"], operation)
            case "end":
                self.client.set_terminated(run_id, operation["status"], operation["time"])

    def _curve(self, run_id: str, key: str) -> dict[int, float]:
        """Return step → value of a metric in the store, read once."""
        if (run_id, key) not in self._curves:
            points = self.client.get_metric_history(run_id, key)
            points = sorted(points, key=lambda point: point.timestamp)
            self._curves[run_id, key] = {point.step: point.value for point in points}
        return self._curves[run_id, key]

    def _log_points(self, run_id: str, points: list[Any], again: bool = False) -> None:
        """Write the points whose step the run lacks; with `again`, the others too."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for name, value, timestamp, step in points:
            key = _key(name)
            if again or step not in self._curve(run_id, key):
                new.setdefault((key, step), Metric(key, value, timestamp, step))
        for metrics in _batches(list(new.values()), 1000):
            self.client.log_batch(run_id, metrics=metrics)
            for metric in metrics:
                self._curve(run_id, metric.key)[metric.step] = metric.value

    def _log_scalars(self, run_id: str, values: dict[str, float], timestamp: int) -> None:
        """Make each value the latest of its key: at its curve's last step, or at step 0."""
        points = []
        for name, value in values.items():
            curve = self._curve(run_id, _key(name))
            last = max(curve, default=0)
            if curve.get(last) != value and math.isfinite(value):
                points.append((name, value, timestamp, last))
        self._log_points(run_id, points, again=True)

    def _log_inputs(self, run_id: str) -> None:
        """Log the datasets as MLflow inputs; MLflow takes 36 characters of a manifest's digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for name, manifest in provenance.manifests().items():
            source = json.dumps(manifest.get("source", {}))[:65535]
            kind = str(manifest.get("kind", ""))
            about = {key: manifest.get(key) for key in ("rows", "bytes", "licence", "revision")}
            digest = manifest["sha256"][:36]
            dataset = Dataset(name, digest, kind, source, profile=json.dumps(about))
            context = "pretraining" if kind == "pretrain" else "finetuning"
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def _log_model(self, run_id: str, name: str, operation: Operation) -> None:
        """Register a model directory as `name`, once for the same bytes, and alias the best as
        champion.
        """
        directory = repository() / operation["directory"]
        weights = directory / "model.safetensors"
        if not weights.is_file() or directory_digest(directory) != operation["digest"]:
            return  # replayed later, when the workspace holds another experiment's model
        name = re.sub(r"[/:]", "-", name)  # a registered model's name must not hold them
        if not self.client.search_registered_models(f"name = '{name}'", max_results=1):
            self.client.create_registered_model(name)
        score = Score(operation["score"], operation.get("tests", ""), operation.get("examples", 0))
        versions = self.client.search_model_versions(f"name = '{name}'")
        version = next((v for v in versions if v.tags.get("digest") == operation["digest"]), None)
        if version is None:
            info = self._log_pyfunc(run_id, directory)
            tags = {"sha256": sha256(weights), "digest": operation["digest"], **score.tags()}
            version = self.client.create_model_version(
                name, info.model_uri, run_id, tags, await_creation_for=0
            )
        elif score.beats(Score.of(version.tags)):
            for key, value in score.tags().items():
                self.client.set_model_version_tag(name, version.version, key, value)
        self.client.set_tag(run_id, MODEL, f"models:/{name}/{version.version}")
        champion = self._champion(name)
        if champion is None or score.beats(champion):
            self.client.set_registered_model_alias(name, "champion", str(version.version))

    def _champion(self, name: str) -> Score | None:
        from mlflow.exceptions import MlflowException

        try:
            return Score.of(self.client.get_model_version_by_alias(name, "champion").tags)
        except MlflowException:  # there is none yet
            return None

    def _log_pyfunc(self, run_id: str, directory: Path) -> Any:
        package = Path(__file__).resolve().parents[1]
        versions = provenance.versions()
        self.mlflow.set_tracking_uri(self.uri)
        from llm.tracking.pyfunc_model import PARAMS

        signature = self.mlflow.models.infer_signature(["a prompt"], ["an answer"], PARAMS)
        with self.mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
            # Drop the warning that type hints are missing: they are on purpose (see pyfunc_model),
            # and MLflow resets any filter.
            return self.mlflow.pyfunc.log_model(
                name="model",
                python_model=str(package / "tracking" / "pyfunc_model.py"),
                artifacts={"model": str(directory)},
                code_paths=[str(package)],
                signature=signature,
                pip_requirements=[_requirement(key, versions) for key in SERVING_PACKAGES],
            )


@dataclass(frozen=True)
class Score:
    """A model's score: the mean of its tasks' headline scores, and the test examples behind it."""

    value: float | None
    tests: str = ""  # digest of the examples
    examples: int = 0

    @classmethod
    def of(cls, tags: dict[str, str]) -> Score:
        """Return the score in the tags of a registered version."""
        value = float(tags["score"]) if "score" in tags else None
        return cls(value, tags.get("tests", ""), int(tags.get("examples", "0")))

    def tags(self) -> dict[str, str]:
        """Return the score as tags of a registered version."""
        if self.value is None:
            return {}
        return {"score": repr(self.value), "tests": self.tests, "examples": str(self.examples)}

    def beats(self, champion: Score) -> bool:
        """Return True if this score replaces the champion's.

        On the same examples the higher value wins. Values on different examples do not compare: the
        score with more examples wins, the newer one if they have equally many.
        """
        if self.value is None or champion.value is None:
            return champion.value is None
        if self.tests == champion.tests:
            return self.value >= champion.value
        return self.examples >= champion.examples


def directory_digest(directory: Path) -> str:
    """Return one digest of all files of a directory and their names."""
    return files_digest((path for path in directory.rglob("*") if path.is_file()), directory)


def artifacts(root: Path) -> str:
    """Return the address of the artifacts of a repository's own store."""
    return (root / "mlartifacts").as_uri()


def follow(root: Path) -> None:
    """Correct the addresses in a repository's own store after it was moved or copied.

    MLflow keeps absolute addresses; in a copy it would write into the original repository."""
    new = artifacts(root)
    with closing(sqlite3.connect(root / "mlflow.db", timeout=60)) as database, database:
        locations = database.execute(
            "SELECT DISTINCT artifact_location FROM experiments"
        ).fetchall()
        for (old,) in locations:
            own = old and old.startswith("file:") and old.endswith("/mlartifacts")
            if not own or _same_folder(old, new):
                continue
            for table, column in ADDRESSES:
                database.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) IN (?, ?)",
                    (new, len(old) + 1, len(old) + 1, old, f"{old}/"),
                )


def _same_folder(one: str, other: str) -> bool:
    """Return True if two addresses lead to one folder, also through links."""
    first, second = (Path(url2pathname(urlparse(uri).path)).resolve() for uri in (one, other))
    return first == second


def _requirement(name: str, versions: dict[str, str]) -> str:
    """Return a requirement of the installed version, without a build's tag such as `+cpu`."""
    return f"{name}=={versions[name].partition('+')[0]}" if name in versions else name


def _batches(items: list[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most `size`, which is what one request may have."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _key(name: str) -> str:
    """Return a key that MLflow accepts: word characters, '/', '.', '-', ':' and space, up to 250."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]

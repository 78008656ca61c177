"""The MLflow store: what a queued operation becomes there. Every write can be repeated without effect.

Only this module imports mlflow, but for `llm.serving`, which is a part of a logged model.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

from llm import executions
from llm.addresses import public, without_credentials
from llm.executions import Operation, State
from llm.io import sha256
from llm.report import pedigree

EXECUTION = "llm.execution"  # the tag by which the store knows an execution
SERVING_PACKAGES = (
    "torch",
    "numpy",
    "safetensors",
    "tokenizers",
    "tiktoken",
    "pydantic",
    "tqdm",
    "pandas",
    "PyYAML",
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
        # It logs what it raises, with a traceback, as where a database has no room; the caller says it in a line.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        self.uri, self.mlflow = uri, mlflow
        self._ids: dict[str, str] = {}
        self._curves: dict[tuple[str, str], dict[int, float]] = {}
        # The first use of a database makes its tables; two processes that do so at once crash.
        with executions.lock(executions.directory() / "store.lock"):
            self._make_database()
            self.client = mlflow.MlflowClient(uri)
            self.client.search_experiments(max_results=1)

    def _make_database(self) -> None:
        """Make a missing SQLite database under another name first: MLflow could not use one made by halves."""
        path = Path(self.uri.removeprefix("sqlite:///"))
        if not self.uri.startswith("sqlite:///") or path.exists() or not path.parent.is_dir():
            return
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.unlink(missing_ok=True)  # of a process that was killed: this one holds the lock
        self.mlflow.MlflowClient(f"sqlite:///{temporary}").search_experiments(max_results=1)
        temporary.rename(path)

    def experiment_id(self, name: str) -> str | None:
        """Id of the experiment called `name`, or None."""
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else None

    def open(self, state: State, resume: bool = False) -> str:
        """The run's id; makes experiment and run where they do not exist. `resume` marks the run as running."""
        from mlflow.entities import Param

        with executions.lock(executions.directory() / "store.lock"):
            experiment = self._open_experiment(state["experiment"])
            query = f"tags.`{EXECUTION}` = '{state['execution']}'"
            found = self.client.search_runs([experiment], query, max_results=1)
            tags = {EXECUTION: state["execution"]}
            started = int(state["started"] * 1000)
            run = found[0] if found else self.client.create_run(experiment, started, tags, state["name"])
        run_id = run.info.run_id
        if resume and run.info.status != "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        wanted = {_key(key): value[:6000] for key, value in state["params"].items()}
        params = [Param(key, value) for key, value in wanted.items() if key not in run.data.params]
        for i in range(0, len(params), 100):
            self.client.log_batch(run_id, params=params[i : i + 100])
        self._ids[state["execution"]] = run_id
        return run_id

    def _open_experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            # A server decides itself where artifacts go; with a database it would be the current directory.
            local = not self.uri.startswith(("http:", "https:", "databricks"))
            return self.client.create_experiment(name, (executions.root() / "mlartifacts").as_uri() if local else None)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return found.experiment_id

    def replay(self, current: str) -> None:
        """Write what stages could not, and remove their spool files. The `current` execution is not ended by it."""
        directory = executions.directory() / "spool"
        for path in sorted(directory.glob("*.jsonl")):
            with executions.lock(directory / ".lock"):
                records = executions.read_spool(path) if path.exists() else []  # another process may have been faster
                if not records or records[0].get("store") != public(self.uri):
                    continue
                for operation in records[1:]:
                    if operation["op"] != "end" or records[0]["execution"] != current:
                        self.apply(records[0], operation)
                path.unlink()

    def apply(self, state: State, operation: Operation) -> None:
        """Write one operation; to repeat it changes nothing. One that MLflow calls invalid is left out, and said so."""
        from mlflow.exceptions import MlflowException

        try:
            self._apply(self._ids.get(state["execution"]) or self.open(state), state, operation)
        except MlflowException as error:
            if error.error_code not in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise
            print(
                without_credentials(f"warning: MLflow refuses {operation['op']}: {str(error)[:300]}"),
                file=sys.stderr,
                flush=True,
            )

    def _apply(self, run_id: str, state: State, operation: Operation) -> None:
        from mlflow.entities import RunTag

        match operation["op"]:
            case "metrics":
                self._log_points(run_id, operation["points"])
            case "scalars":
                self._log_scalars(run_id, operation["values"], operation["time"])
            case "tags":
                tags = [RunTag(_key(key), value[:8000]) for key, value in operation["tags"].items()]
                for i in range(0, len(tags), 100):
                    self.client.log_batch(run_id, tags=tags[i : i + 100])
            case "inputs":
                self._log_inputs(run_id)
            case "artifacts":
                for path, folder, digest in operation["files"]:
                    if Path(path).is_file() and sha256(path) == digest:
                        self.client.log_artifact(run_id, path, folder or None)
            case "model":
                self._log_model(run_id, state["experiment"], operation)
            case "end":
                self.client.set_terminated(run_id, operation["status"], operation["time"])

    def _curve(self, run_id: str, key: str) -> dict[int, float]:
        """Step → value of a metric in the store, read once."""
        if (run_id, key) not in self._curves:
            points = sorted(self.client.get_metric_history(run_id, key), key=lambda point: point.timestamp)
            self._curves[run_id, key] = {point.step: point.value for point in points}
        return self._curves[run_id, key]

    def _log_points(self, run_id: str, points: list[Any], again: bool = False) -> None:
        """Write the points whose step the run does not have; `again`: the others too."""
        from mlflow.entities import Metric

        new: dict[tuple[str, int], Metric] = {}
        for name, value, timestamp, step in points:
            key = _key(name)
            if again or step not in self._curve(run_id, key):
                new.setdefault((key, step), Metric(key, value, timestamp, step))
        metrics = list(new.values())
        for i in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[i : i + 1000])
            for metric in metrics[i : i + 1000]:
                self._curve(run_id, metric.key)[metric.step] = metric.value

    def _log_scalars(self, run_id: str, values: dict[str, float], timestamp: int) -> None:
        """Make each value the latest of its key: at its curve's last step, or at step 0 where it has none."""
        points = []
        for name, value in values.items():
            curve = self._curve(run_id, _key(name))
            last = max(curve, default=0)
            if curve.get(last) != value and math.isfinite(value):
                points.append((name, value, timestamp, last))
        self._log_points(run_id, points, again=True)

    def _log_inputs(self, run_id: str) -> None:
        """The datasets as MLflow dataset inputs; the digest is that of the manifest, cut to MLflow's 36 characters."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = []
        for name, manifest in pedigree.manifests().items():
            source = json.dumps(manifest.get("source", {}))[:65535]
            profile = json.dumps({key: manifest.get(key) for key in ("rows", "bytes", "licence", "revision")})
            dataset = Dataset(name, manifest["sha256"][:36], str(manifest.get("kind", "")), source, profile=profile)
            context = "pretraining" if manifest.get("kind") == "pretrain" else "finetuning"
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", context)]))
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def _log_model(self, run_id: str, name: str, operation: Operation) -> None:
        """Log a model directory as pyfunc with its code, register it as `name`, and alias the best as champion."""
        from mlflow.exceptions import MlflowException

        weights = Path(operation["directory"], "model.safetensors")
        if not weights.is_file() or sha256(weights) != operation["sha256"]:
            return  # replayed later, when the workspace holds another experiment's model
        digest = operation["sha256"]
        name = re.sub(r"[/:]", "-", name)  # a registered model's name must not hold them
        if not self.client.search_registered_models(f"name = '{name}'", max_results=1):
            self.client.create_registered_model(name)
        if any(v.tags.get("sha256") == digest and v.run_id == run_id for v in self._versions(name)):
            return
        package = Path(__file__).resolve().parent
        versions = pedigree.versions()
        self.mlflow.set_tracking_uri(self.uri)
        from llm.serving import PARAMS

        signature = self.mlflow.models.infer_signature(["a prompt"], ["an answer"], PARAMS)
        with self.mlflow.start_run(run_id=run_id), warnings.catch_warnings(record=True):
            # Recorded and dropped, that type hints are missing: on purpose, see llm.serving. MLflow resets any filter.
            info = self.mlflow.pyfunc.log_model(
                name="model",
                python_model=str(package / "serving.py"),
                artifacts={"model": operation["directory"]},
                code_paths=[str(package)],
                signature=signature,
                pip_requirements=[_requirement(key, versions) for key in SERVING_PACKAGES],
            )
        score = operation["score"]
        tags = {"sha256": digest} | ({"score": repr(score)} if score is not None else {})
        version = self.client.create_model_version(name, info.model_uri, run_id, tags, await_creation_for=0).version
        try:
            champion = float(self.client.get_model_version_by_alias(name, "champion").tags.get("score", "-inf"))
        except MlflowException:  # there is none yet
            champion = -math.inf
        if score is None or score >= champion:
            self.client.set_registered_model_alias(name, "champion", str(version))

    def _versions(self, name: str) -> list[Any]:
        return list(self.client.search_model_versions(f"name = '{name}'"))


def _requirement(name: str, versions: dict[str, str]) -> str:
    """The version that is installed, without what names a build of it, such as `+cpu`: registries do not have those."""
    return f"{name}=={versions[name].partition('+')[0]}" if name in versions else name


def _key(name: str) -> str:
    """A key that MLflow takes: word characters, '/', '.', '-', ':' and space, at most 250."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:250]

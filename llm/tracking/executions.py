"""Executions of the pipeline, to which stages belong, and the spool of what MLflow did not take.

`.state/mlflow/<experiment>.json` holds the open execution of each DVC experiment, so the
answer is the same when the tracking server is down; `spool/<execution>.jsonl` beside it has what
the server did not take.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from llm.addresses import public
from llm.errors import UserError
from llm.params import Params
from llm.runtime import env, provenance
from llm.runtime.flatten import flatten
from llm.runtime.io import read_json, write_json
from llm.runtime.locks import locked
from llm.runtime.state_dirs import repository, state_root

State = dict[str, Any]
Operation = dict[str, Any]


def own_store() -> str:
    """Return the address of the repository's own store, a SQLite file."""
    return f"sqlite:///{repository()}/mlflow.db"


def store_uri() -> str:
    """Return $MLFLOW_TRACKING_URI, else the repository's own store."""
    return env.mlflow_uri() or own_store()


def directory() -> Path:
    """Return the folder of executions and the spool."""
    return state_root() / "mlflow"


def state_path() -> Path:
    """Return the file of this DVC experiment's open execution."""
    key = env.dvc_experiment() or "workspace"
    return directory() / (re.sub(r"[^\w.-]", "_", key) + ".json")


def current(params: Params, stage: str) -> State:
    """Return the open execution of this experiment if it has these params, else a new one.

    It is also a new one if `stage` began with other code: one curve would show two programs.
    """
    flat = flatten(params.model_dump(mode="json"))
    same = {
        "params": {k: v if isinstance(v, str) else json.dumps(v) for k, v in flat.items()},
        # Empty for the repository's own store, so that the repository can be moved.
        "store": public(env.mlflow_uri() or ""),
        "experiment": params.tracking.experiment,
    }
    path = state_path()
    with locked(path.with_suffix(".lock")):
        old = _read_state(path)
        code = provenance.code_digest()
        if old and old["open"] and all(old[key] == value for key, value in same.items()):
            if stage not in old["stages"]:
                old["stages"][stage] = code
                write_json(path, old)
            if old["stages"][stage] == code:
                return old
        commit = provenance.git().get("commit", "")[:7]
        name = env.dvc_experiment() or (f"workspace-{commit}" if commit else "workspace")
        new = {
            "execution": uuid.uuid4().hex,
            "name": name,
            "started": time.time(),
            "open": True,
            "stages": {stage: code},
        }
        new |= same
        if old and old["open"]:
            spool(old, [{"op": "end", "status": "KILLED", "time": now()}])
        write_json(path, new)
    return new


def _read_state(path: Path) -> State | None:
    """Return the state; None if it is missing or an older version wrote it."""
    try:
        state = read_json(path) if path.is_file() else None
    except UserError:
        return None
    wanted = ("execution", "name", "started", "open", "params", "stages", "store", "experiment")
    return state if isinstance(state, dict) and all(key in state for key in wanted) else None


def tags() -> dict[str, str]:
    """Return the tags that name this execution's code and inputs."""
    values = {f"git.{key}": value for key, value in provenance.git().items()}
    if "git.commit" in values:
        values["mlflow.source.git.commit"] = values["git.commit"]
    values |= {
        "mlflow.source.name": "dvc.yaml",
        "mlflow.source.type": "PROJECT",
        "llm.code": provenance.code_digest(),
    }
    dvc = {"dvc.exp_name": env.dvc_experiment(), "dvc.baseline": env.dvc_baseline()}
    values |= {key: value for key, value in dvc.items() if value} | env.study()
    return values | {f"input/{name}": digest for name, digest in provenance.input_hashes().items()}


def now() -> int:
    """Return milliseconds since the epoch, MLflow's unit."""
    return int(time.time() * 1000)


def spool(state: State, operations: list[Operation]) -> None:
    """Append operations to the execution's spool file, whose first line is the execution itself."""
    path = directory() / "spool" / f"{state['execution']}.jsonl"
    with locked(path.parent / ".lock"):
        size = path.stat().st_size if path.exists() else 0
        records = operations if size else [state, *operations]
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write("".join(f"{json.dumps(record)}\n" for record in records))
        except OSError:  # a full disk: half a line would spoil the next one too
            if path.exists():
                os.truncate(path, size)
            raise


def read_spool(path: Path) -> list[dict[str, Any]]:
    """Return the records of a spool file, without a line that a kill left half-written."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"warning: {path}: a broken line is skipped", file=sys.stderr)
    return records

"""A checkout with a tiny configuration, in which the real DAG runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests import warm

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "networkx",
    "datasets",
]  # documentation small enough to read in seconds, with all three tasks

TINY: dict[str, Any] = {
    "download": {
        name: {"source": "docs", "packages": PACKAGES}
        for name in ("pretrain", "summarization", "question_answering", "classification")
    },
    "tokenize": {"vocab_size": 600, "val_fraction": 0.1},
    "model": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 256,
    },
    "pretrain": {
        "tokens": 16384,
        "batch_tokens": 1024,
        "sequence_length": 128,
        "eval_every": 8,
        "eval_tokens": 2000,
        "precision": "fp32",
        "compile": False,
    },
    "mix": {"examples": 120, "pretrain_fraction": 0.1, "max_tokens": 224},
    "finetune": {
        "epochs": 1,
        "batch_tokens": 2048,
        "sequence_length": 256,
        "eval_every": 8,
        "eval_tokens": 2000,
        "precision": "fp32",
        "compile": False,
        "lora": {"r": 4, "dropout": 0.1},
    },
    "align": {
        "prompts": 80,
        "samples": 12,
        "temperature": 0.3,
        "max_new_tokens": 60,
        "margin": 0.01,
        "val_fraction": 0.2,
        "epochs": 8,
        "learning_rate": 0.01,
        "batch_tokens": 1024,
        "sequence_length": 512,
        "eval_every": 4,
        "precision": "fp32",
        "compile": False,
        "lora": {"r": 4, "dropout": 0.1},
    },
    "evaluate": {
        "examples": 6,
        "max_new_tokens": {"summarization": 8, "question_answering": 8},
        "perplexity_tokens": 2000,
        "bootstrap": 100,
    },
}


def merge(data: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Overlay nested values; sources are replaced whole."""
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict) and "source" not in value:
            merge(data[key], value)
        else:
            data[key] = value
    return data


def environment(root: Path, fresh: bool = False) -> dict[str, str]:
    """Return the environment that `make` sets: this Python first on the PATH, no variables of DVC or MLflow.

    fresh: `python` and `dvc` are processes of their own, not forks of `tests.warm`; outside of
        pytest they always are.
    """
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("DVC_", "MLFLOW_TRACKING", "LLM_"))
    }
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    if not fresh and "PYTEST_VERSION" in os.environ:
        programs.insert(0, str(warm.programs()))
    return {
        **kept,
        "PATH": os.pathsep.join(programs),
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@localhost",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@localhost",
    }


def run(
    root: Path,
    *command: str,
    check: bool = True,
    timeout: float = 300,
    fresh: bool = False,
    **env: str,
) -> subprocess.CompletedProcess:
    """Run a command in the checkout; with `check`, fail with all that it printed.

    fresh: see `environment`.
    """
    done = subprocess.run(
        command,
        cwd=root,
        env={**environment(root, fresh), **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    )
    return done


def copy(source: Path, root: Path, changes: dict[str, Any] | None = None) -> Path:
    """Another checkout with the same data, without models, states and tracked runs; `changes` to
    params committed.
    """
    ignored = shutil.ignore_patterns("models", ".state", "mlflow.db*", "mlartifacts")
    shutil.copytree(source, root, ignore=ignored, symlinks=True)
    if changes:
        params = merge(yaml.safe_load((root / "params.yaml").read_text()), changes)
        (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "data", "--allow-empty")
    return root


def checkout(root: Path, changes: dict[str, Any] | None = None) -> Path:
    """Copy the project's files (not its outputs) to `root`, apply TINY and `changes`, commit."""
    root.mkdir(parents=True, exist_ok=True)
    for name in ("llm", "stages", "align", "scaling", "techniques"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "constraints.txt", ".gitignore", ".dvcignore", "pyproject.toml"):
        shutil.copyfile(ROOT / name, root / name)
    params = merge(
        yaml.safe_load((ROOT / "params.yaml").read_text()), yaml.safe_load(yaml.safe_dump(TINY))
    )
    (root / "params.yaml").write_text(yaml.safe_dump(merge(params, changes or {}), sort_keys=False))
    run(root, "git", "init", "-q")
    run(root, "dvc", "init", "-q")
    shutil.copyfile(ROOT / ".dvc" / "config", root / ".dvc" / "config")
    run(root, "git", "add", "-A")
    run(root, "git", "commit", "-qm", "start")
    return root

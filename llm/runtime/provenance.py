"""The origin of a number: code, versions, and the hashes of its inputs."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from llm.runtime.io import files_digest, read_json, read_yaml, sha256

PACKAGES = (
    *(
        "torch",
        "numpy",
        "tokenizers",
        "tiktoken",
        "safetensors",
        "datasets",
        "pyarrow",
        "pandas",
        "scikit-learn",
    ),
    *(
        "sacrebleu",
        "rouge-score",
        "datasketch",
        "zstandard",
        "dvc",
        "mlflow",
        "matplotlib",
        "jinja2",
        "pydantic",
    ),
)


def versions() -> dict[str, str]:
    """Return the versions of Python and of each installed package that can change a result."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git() -> dict[str, str]:
    """Return `commit` (40 digits) and `dirty` ("true" if tracked files differ); {} without git."""
    commit = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if not commit:
        return {}
    return {
        "commit": commit,
        "dirty": "true" if _git("status", "--porcelain", "--untracked-files=no") else "false",
    }


def _git(*arguments: str) -> str:
    """Return what git prints; "" if it fails or is not installed."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@cache
def code_digest(*packages: str) -> str:
    """Return the SHA-256 of the names and bytes of all Python files in packages of `llm`.

    Args:
        packages: names such as "model"; without any, all of `llm` and the stages.
    """
    llm = Path(__file__).resolve().parents[1]
    directories = [llm / name for name in packages] or [llm, llm.parent / "stages"]
    files = (path for directory in directories for path in directory.rglob("*.py"))
    return files_digest(files, llm.parent)


def manifests() -> dict[str, dict[str, Any]]:
    """Return the manifest of each dataset in data/raw, `pretrain` first, with its own `sha256`.

    A manifest contains the digest of each of its files, so its digest stands for the dataset.
    """
    paths = sorted(
        Path("data/raw").glob("*/manifest.json"),
        key=lambda path: (path.parent.name != "pretrain", path),
    )
    return {path.parent.name: {**read_json(path), "sha256": sha256(path)} for path in paths}


def lock_entries() -> list[dict[str, Any]]:
    """Return `path`, `md5`, `size` (bytes) and writing `stage` of each data file of `dvc.lock`.

    They are sorted by path. Stages that have not finished yet, such as `report` itself, are not in
    the lock file of this run.
    """
    path = Path("dvc.lock")
    if not path.is_file():
        return []
    stages = (read_yaml(path) or {}).get("stages", {})
    entries: dict[str, dict[str, Any]] = {}
    for kind in ("deps", "outs"):
        for stage, parts in stages.items():
            for item in parts.get(kind, []):
                if item["path"].endswith(".py") or stage == "report":
                    continue
                writer = stage if kind == "outs" else entries.get(item["path"], {}).get("stage", "")
                about = {"md5": item.get("md5", ""), "size": item.get("size"), "stage": writer}
                entries[item["path"]] = {"path": item["path"], **about}
    return [entries[path] for path in sorted(entries)]


def input_hashes() -> dict[str, str]:
    """Return the digests of what training read, by name.

    Manifests and token shards have SHA-256, the other files of `dvc.lock` md5.
    """
    hashes = {
        f"data/raw/{name}": f"sha256:{manifest['sha256']}" for name, manifest in manifests().items()
    }
    if Path("data/tokens/meta.json").is_file():
        hashes["data/tokens"] = f"sha256:{sha256('data/tokens/meta.json')}"
    for entry in lock_entries():
        if entry["path"].startswith(("data/", "models/")) and entry["md5"]:
            hashes.setdefault(entry["path"], f"md5:{entry['md5']}")
    return hashes

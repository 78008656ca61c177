"""The environment variables that the project reads: a function for each, with its type and meaning.

The libraries below have variables of their own (MLFLOW_…, HF_…, AWS_…); what they mean stands in
the documentation of those libraries.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from llm.errors import UserError

SHARDING = ("ddp", "fsdp")


def device() -> str | None:
    """Return LLM_DEVICE: the device, such as `cpu` or `cuda:1`; None: the best one."""
    return os.environ.get("LLM_DEVICE") or None


def processes() -> int | None:
    """Return LLM_PROCESSES: the number of training processes; None: one for each device.

    Raises:
        UserError: the variable is not a positive whole number.
    """
    text = os.environ.get("LLM_PROCESSES")
    if text is None:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise UserError(
            f"LLM_PROCESSES={text!r}: expected the number of training processes, 1 or more."
        )
    return int(text)


def sharding() -> str | None:
    """Return LLM_SHARDING: `ddp` (each process has the whole model) or `fsdp` (each has a part).

    Raises:
        UserError: the variable has another value.
    """
    text = os.environ.get("LLM_SHARDING") or None
    if text not in (None, *SHARDING):
        raise UserError(
            f"LLM_SHARDING={text!r}: expected ddp (each process has the whole model) or fsdp (a part)."
        )
    return text


def state_seconds(default: float) -> float:
    """Return LLM_STATE_SECONDS: seconds between two checkpoints."""
    return number("LLM_STATE_SECONDS", default, "seconds between checkpoints")


def timeout_seconds(default: float) -> float:
    """Return LLM_TIMEOUT_SECONDS: the longest wait for another process within a step."""
    return number("LLM_TIMEOUT_SECONDS", default, "seconds to wait for another process", least=1)


def state_url() -> str | None:
    """Return LLM_STATE_URL: the remote folder that checkpoints are copied to; None: no copies."""
    return os.environ.get("LLM_STATE_URL") or None


def tokens_url() -> str | None:
    """Return LLM_TOKENS_URL: the remote folder that token shards are read from; None: the disk."""
    return os.environ.get("LLM_TOKENS_URL") or None


def tokens_cache(default: str) -> Path:
    """Return LLM_TOKENS_CACHE: the local folder for blocks of remote token shards."""
    return Path(os.environ.get("LLM_TOKENS_CACHE") or default).expanduser()


def tokens_cache_gb(default: float) -> float:
    """Return LLM_TOKENS_CACHE_GB: the limit of that folder, in 10^9 bytes."""
    return number("LLM_TOKENS_CACHE_GB", default, "gigabytes of disk for tokens", least=1e-6)


def study() -> dict[str, str]:
    """Return LLM_STUDY and LLM_TRIAL, which `python -m llm tune` sets, as tags of an execution."""
    names = {"optuna.study": "LLM_STUDY", "optuna.trial": "LLM_TRIAL"}
    return {tag: os.environ[name] for tag, name in names.items() if os.environ.get(name)}


def dvc_root() -> Path | None:
    """Return DVC_ROOT: the main repository, which DVC sets for stages; None outside of DVC."""
    text = os.environ.get("DVC_ROOT")
    return Path(text) if text else None


def dvc_experiment() -> str | None:
    """Return DVC_EXP_NAME: the name of the DVC experiment; None in a plain `dvc repro`."""
    return os.environ.get("DVC_EXP_NAME") or None


def dvc_baseline() -> str | None:
    """Return DVC_EXP_BASELINE_REV: the commit that a DVC experiment starts from."""
    return os.environ.get("DVC_EXP_BASELINE_REV") or None


def mlflow_uri() -> str | None:
    """Return MLFLOW_TRACKING_URI: the tracking server or store; None: the repository's own."""
    return os.environ.get("MLFLOW_TRACKING_URI") or None


def rank() -> int:
    """Return RANK: the number of this process among those that `torchrun` started, from 0."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Return WORLD_SIZE: the number of processes that train together, on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return LOCAL_WORLD_SIZE: the number of processes that train together on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def number(variable: str, default: float, meaning: str, least: float = 0.0) -> float:
    """Return the number in `variable`, or `default` where it is empty or not set.

    Args:
        variable: name of the environment variable.
        default: the value that the message gives as an example too.
        meaning: what the number counts, for the message, e.g. "seconds between checkpoints".
        least: the smallest valid value.

    Raises:
        UserError: the variable is not a finite number of at least `least`.
    """
    text = os.environ.get(variable)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= least):
        raise UserError(
            f"{variable}={text!r}: expected {meaning}, {least:g} or more, such as {default:g}."
        )
    return value

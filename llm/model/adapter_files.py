"""Parts that all of PEFT's adapter directories share: tensors, target lists, and the base's digests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.errors import UserError
from llm.model.adapted_linear import MATRICES
from llm.runtime.io import read_json, write_json

PREFIX = "base_model.model."  # PEFT's name for the wrapped model
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

# Fields of every kind of adapter that do not affect a trained one: provenance.
PROVENANCE = {
    "task_type",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "peft_version",
    "auto_mapping",
}


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """Return the tensors of an adapter by name.

    Raises:
        UserError: the file is missing, broken or pickled.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = directory / TENSORS
    if not path.exists() and (directory / "adapter_model.bin").exists():
        raise UserError(
            f"{directory} holds a pickled adapter, which can run code when loaded; convert it to safetensors first."
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). Run `dvc repro` to write it again."
        ) from None


@torch.no_grad()
def fill_parameters(parameters: dict[str, Tensor], directory: Path) -> None:
    """Copy the tensors of an adapter into parameters with the names of the file.

    Raises:
        UserError: as in `read_tensors`, or names or shapes differ.
    """
    path, tensors = directory / TENSORS, read_tensors(directory)
    if set(parameters) != set(tensors):
        different = sorted(set(parameters) ^ set(tensors))
        raise UserError(
            f"{path} belongs to another model: {different[0]} and {len(different) - 1} more tensors do not match."
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise UserError(
                f"{path} belongs to another model: {name} is {tuple(tensors[name].shape)}, "
                f"expected {tuple(parameter.shape)}."
            )
        parameter.copy_(tensors[name])


def listed_modules(config: dict[str, Any], key: str, where: Path) -> list[str]:
    """Return the names of modules that a field of `adapter_config.json` lists.

    Raises:
        UserError: it is no list.
    """
    modules = config.get(key)
    if modules == "all-linear":
        return list(MATRICES)
    if not isinstance(modules, list):
        raise UserError(
            f"{where}: {key} = {modules!r}; expected a list of module names, or 'all-linear'."
        )
    return modules


def write_base(directory: Path, base: dict[str, str]) -> None:
    """Write the digests of its base (`llm.model.hf_files.digests`) into an adapter's directory.

    PEFT ignores the file.
    """
    write_json(directory / "base.json", base)


def check_base(directory: Path, base: Path | None) -> None:
    """Check that an adapter was trained on the model in `base`.

    Raises:
        UserError: the adapter's directory has the digests of another model.
    """
    from llm.model.hf_files import digests

    if base is None or not (directory / "base.json").exists():
        return
    trained_on, present = read_json(directory / "base.json"), digests(base)
    if trained_on != present:
        different = min(
            name
            for name in trained_on.keys() | present.keys()
            if trained_on.get(name) != present.get(name)
        )
        raise UserError(
            f"{directory} is an adapter for another base than {base}: {different} has other bytes than what it was "
            "trained on. Choose the base that adapter_config.json names, or train the adapter again."
        )

"""Loading of adapters of every kind that PEFT's `peft_type` names and this project has."""

from __future__ import annotations

from pathlib import Path

from llm.errors import UserError
from llm.model.adapter_files import CONFIG, check_base
from llm.model.ia3 import load_ia3
from llm.model.lora_files import load_lora
from llm.model.soft_prompt import load_prompt
from llm.model.transformer import Transformer
from llm.runtime.io import read_json


def load_adapter(model: Transformer, directory: Path, base: Path | None = None) -> tuple[int, ...]:
    """Add an adapter in PEFT's format to the model: LoRA, DoRA, IA3 or a soft prompt.

    Args:
        model: the base; it is changed in place.
        directory: the adapter's directory.
        base: the model's directory, to check that the adapter was trained on it.

    Returns:
        The ids of a soft prompt's virtual tokens.

    Raises:
        UserError: a file is missing or broken, the adapter belongs to another base or is of a kind
            that is not supported, its rank is below 1, or the model lacks a target.
    """
    where = directory / CONFIG
    config = read_json(where)
    if not isinstance(config, dict):
        raise UserError(f"{where}: expected an object, found {type(config).__name__}.")
    check_base(directory, base)
    kind = config.get("peft_type")
    if kind == "PROMPT_TUNING":
        return load_prompt(model, directory)
    if kind == "LORA":
        load_lora(model, directory, config)
    elif kind == "IA3":
        load_ia3(model, directory, config)
    else:
        raise UserError(
            f"{where}: peft_type {kind!r} is not supported; expected LORA, IA3 or PROMPT_TUNING."
        )
    return ()

"""Loaded models by name: base, finetuned, and adapters, which share the weights of the base."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from llm.errors import UserError
from llm.model.adapters import load_adapter
from llm.model.hf_files import load_model, stop_ids
from llm.model.transformer import Transformer
from llm.tokenizer.bpe import Tokenizer

BASE, FINETUNED = Path("models/base"), Path("models/finetuned")


@dataclass(frozen=True)
class Named:
    """A model in evaluation mode with its name and tokenizer; `stop_ids` end its answers."""

    name: str
    model: Transformer
    tokenizer: Tokenizer
    stop_ids: frozenset[int]


class Shelf:
    """Models by name, each read on first use.

    A directory with an `adapter_config.json` is an adapter for the model named `base` and shares
    its weights, so ten adapters need the memory of one base. Any other directory is a model.
    """

    def __init__(
        self, directories: Mapping[str, Path], device: torch.device, dtype: torch.dtype
    ) -> None:
        self.directories = dict(directories)
        self.device, self.dtype = device, dtype
        self._read: dict[str, Named] = {}

    def get(self, name: str) -> Named:
        """Return the model with this name, or the model in the directory with this path.

        Raises:
            UserError: there is no such model, its files are broken, or it is an adapter for another
                base.
        """
        if name not in self._read:
            directory = self.directories.get(name, Path(name))
            if (directory / "adapter_config.json").is_file():
                self._read[name] = self._with_adapter(name, directory)
            elif name in self.directories or (directory / "config.json").is_file():
                model, tokenizer = (
                    load_model(directory, self.device, self.dtype),
                    Tokenizer.load(directory),
                )
                if tokenizer.vocab_size > model.config.vocab_size:
                    raise UserError(
                        f"{directory}: its tokenizer has ids up to {tokenizer.vocab_size - 1:,}, but config.json says "
                        f"vocab_size = {model.config.vocab_size:,}: they are not of the same model."
                    )
                self._read[name] = Named(name, model, tokenizer, stop_ids(directory, tokenizer))
            else:
                raise UserError(
                    f"no model {name!r}: expected {', '.join(self.directories)}, or a directory with a config.json or "
                    "an adapter_config.json."
                )
        return self._read[name]

    def _with_adapter(self, name: str, directory: Path) -> Named:
        if "base" not in self.directories:
            raise UserError(
                f"{directory} is an adapter, but there is no model called `base` to put it on."
            )
        base = self.get("base")
        with torch.device("meta"):
            model = Transformer(base.model.config)
        model.compute_dtype, model.soft_prompt = base.model.compute_dtype, base.model.soft_prompt
        model.load_state_dict(base.model.state_dict(), assign=True)  # the same memory, not a copy
        tokenizer = copy.copy(base.tokenizer)
        tokenizer.prefix = (
            load_adapter(model, directory, self.directories["base"]) or tokenizer.prefix
        )
        return Named(name, model.eval(), tokenizer, base.stop_ids)


def default_directories() -> dict[str, Path]:
    """Return the directories that exist of this pipeline's `base` and `finetuned` models."""
    from llm import params

    base = Path(params.load().finetune.base) if Path("params.yaml").exists() else BASE
    return {
        name: path for name, path in (("base", base), ("finetuned", FINETUNED)) if path.is_dir()
    }

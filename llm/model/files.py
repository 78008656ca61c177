"""Model directories in Hugging Face's layout, in and out; no conversion step, no pickle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from llm.errors import UserError
from llm.io import read_json, save_tensors, write_json
from llm.model.config import Config
from llm.model.transformer import Transformer

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "ranks.tiktoken")


def save_model(model: Transformer, directory: Path, tokenizer: Path, eos_id: int) -> None:
    """Write config, weights (float32), generation config and the tokenizer's files into an existing directory."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    save_tensors(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / "config.json", model.config.to_json(eos_id))
    write_json(
        directory / "generation_config.json",
        {"bos_token_id": eos_id, "eos_token_id": eos_id, "pad_token_id": eos_id, "do_sample": False},
    )
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, directory / name)


def load_model(
    directory: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Transformer:
    """Read a model directory; tensors are read one by one into place.

    Args:
        dtype: type of the activations; weights are kept in it as well, so decoding in bfloat16 halves the memory.

    Raises:
        UserError: a file is missing, truncated or of another model; pickled weights are refused.
    """
    from safetensors import SafetensorError, safe_open

    directory = Path(directory)
    config = Config.from_json(read_json(directory / "config.json"), str(directory / "config.json"))
    model = Transformer(config).to(device=device, dtype=dtype).eval()
    model.compute_dtype = dtype
    wanted = dict(model.state_dict())
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    missing = set(wanted)
    for path in _weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in list(file.keys()):
                    if name == "lm_head.weight" and config.tie_word_embeddings:
                        continue
                    if name not in wanted:
                        raise UserError(f"{path}: unexpected tensor {name}; is config.json of this model?")
                    tensor = file.get_tensor(name)
                    if tensor.shape != wanted[name].shape:
                        raise UserError(
                            f"{path}: {name} has shape {tuple(tensor.shape)}, config.json asks for "
                            f"{tuple(wanted[name].shape)}."
                        )
                    wanted[name].copy_(tensor)
                    missing.discard(name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} cannot be read ({error}). It may be truncated: copy or make it again.") from None
    if missing:
        raise UserError(f"{directory}: tensor {min(missing)} is missing (and {len(missing) - 1} more).")
    return model


def _weight_files(directory: Path) -> list[Path]:
    index = directory / f"{WEIGHTS}.index.json"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
            raise UserError(f"{index}: expected a `weight_map` of tensor names to files.") from None
        if any(Path(name).name != name for name in names):
            raise UserError(f"{index}: file names must not hold a path.")
        return [directory / name for name in names]
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    if list(directory.glob("*.bin")) or list(directory.glob("*.pt*")):
        raise UserError(
            f"{directory} holds pickled weights, which can run code when loaded; convert them to safetensors first."
        )
    raise UserError(f"{directory}: no {WEIGHTS}. Run `dvc repro` to make it.")

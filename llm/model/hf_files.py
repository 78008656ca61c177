"""Reading and writing of model directories in Hugging Face's layout, without pickle."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from llm.errors import UserError, say_once
from llm.model.config import Config
from llm.model.sharded_tensor import fill
from llm.model.transformer import Transformer
from llm.runtime import outputs
from llm.runtime.io import read_json, save_tensors, sha256, write_json

if TYPE_CHECKING:
    from llm.tokenizer.bpe import Tokenizer

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TOKENIZER_FILES = outputs.TOKENIZER
STORED = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # safetensors' names
FLOATS = tuple(STORED.values())
# Folder of a model directory for the soft prompt that finetuning trained, in PEFT's format.
PROMPT = "prompt"
LAYER_MATRIX = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj\.weight")
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"
# Buffers of old checkpoints, which are recomputed from the config.
RECOMPUTED = re.compile(r"rotary_emb\.inv_freq$")


def save_model(model: Transformer, directory: Path, tokenizer: Path, eos_id: int) -> None:
    """Write a model, its configuration and its tokenizer into an existing directory.

    Args:
        model: the model to write.
        directory: where to write it.
        tokenizer: directory with the tokenizer's files. If it is a model directory, the ids of
            special tokens and the generation config are copied from it too.
        eos_id: end token, used as the id of all special tokens otherwise.
    """
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()
    }
    if model.config.tie_word_embeddings:
        del tensors[HEAD]
    if tensors.pop("soft_prompt", None) is not None:
        from llm.model.soft_prompt import save_prompt

        (directory / PROMPT).mkdir()
        save_prompt(model, directory / PROMPT, base="..")
    save_tensors(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), eos_id)
    config = model.config.to_json(eos_id, dtype)
    if (tokenizer / "config.json").exists():
        original = read_json(tokenizer / "config.json")
        config |= {key: original.get(key) for key in ids}
    write_json(directory / "config.json", config)
    if (tokenizer / "generation_config.json").exists():
        shutil.copyfile(tokenizer / "generation_config.json", directory / "generation_config.json")
    else:
        write_json(directory / "generation_config.json", {**ids, "do_sample": False})
    for name in TOKENIZER_FILES:
        if (tokenizer / name).exists():
            shutil.copyfile(tokenizer / name, directory / name)


def load_config(directory: str | Path) -> Config:
    """Read the `config.json` of a model directory.

    If it ties the embeddings but the weights hold a different output projection, the embeddings are
    not tied: the weights decide, as in `transformers`.

    Raises:
        UserError: there is no such file, or `Config.from_json` refuses it.
    """
    path = Path(directory) / "config.json"
    if not path.exists():
        raise UserError(
            f"{path}: no such file. Run `dvc repro` to make it, or name a Hugging Face model directory."
        )
    config = Config.from_json(read_json(path), str(path))
    if config.tie_word_embeddings and _has_own_head(Path(directory)):
        say_once(f"{path} ties the embeddings, but the weights hold another {HEAD}, which is used.")
        config = replace(config, tie_word_embeddings=False)
    return config


def _has_own_head(directory: Path) -> bool:
    """Tell whether a directory's weights hold an output projection unlike the embeddings."""
    from safetensors import SafetensorError, safe_open

    if not any((directory / name).exists() for name in (WEIGHTS, INDEX)):
        return False
    files: dict[str, Path] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                files |= dict.fromkeys({HEAD, EMBEDDINGS} & set(file.keys()), path)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
    if len(files) < 2:
        return False
    head, embeddings = [_read(files[name], name) for name in (HEAD, EMBEDDINGS)]
    return head.dtype != embeddings.dtype or not torch.equal(head, embeddings)


def _read(path: Path, name: str) -> torch.Tensor:
    """Read one tensor; the file is closed at once, so that its pages do not stay in memory."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def load_model(
    directory: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    keep_stored: bool = False,
    quantize: bool = False,
) -> Transformer:
    """Read a model directory.

    The modules are created without memory and filled tensor by tensor, so the peak memory is the
    model plus one tensor.

    Args:
        directory: the model directory.
        device: device of the weights.
        dtype: type of the activations and the weights; bfloat16 halves the memory of decoding.
        keep_stored: keep the weights in the type of the file, without rounding; they are cast when
            they are used.
        quantize: quantize each matrix of the layers to 4 bits as it is read
            (llm/model/quantized.py).

    Raises:
        UserError: a file is missing, truncated, pickled, or does not match config.json.
    """
    from llm.model.quantized import QuantizedLinear

    directory = Path(directory)
    model = _without_memory(load_config(directory))
    model.compute_dtype = dtype
    for name, tensor in _tensors(directory, model):
        kind = tensor.dtype if keep_stored else dtype
        # A copy, not a view: the file may be replaced while the model is in use.
        model.load_state_dict({name: tensor.to(device, kind, copy=True)}, strict=False, assign=True)
        del tensor
        if quantize and LAYER_MATRIX.fullmatch(name):
            parent, _, child = name.removesuffix(".weight").rpartition(".")
            module = model.get_submodule(parent)
            setattr(module, child, QuantizedLinear(getattr(module, child)))
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    if (directory / PROMPT).is_dir():
        from llm.model.soft_prompt import load_prompt

        load_prompt(model, directory / PROMPT)
    return model.eval()


def model_to_shard(directory: str | Path, keep_stored: bool = False) -> Transformer:
    """Return the model of a directory on the meta device.

    After it is sharded, its `fill` reads the weights tensor by tensor.

    Args:
        directory: the model directory.
        keep_stored: as in `load_model`.

    Raises:
        UserError: as in `load_model`. Errors in a tensor's data are raised by `fill`.
    """
    directory = Path(directory)
    model = _without_memory(load_config(directory))
    wanted = _shapes(model)
    for name, kind in _stored_types(directory).items() if keep_stored else ():
        if name in wanted:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.to(kind)

    def read() -> None:
        for name, tensor in _tensors(directory, model, wanted):
            fill(model.get_parameter(name), tensor)

    model.fill = read
    return model


def _without_memory(config: Config) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


def _shapes(model: Transformer) -> dict[str, torch.Size]:
    """Return the shapes of the tensors that a model's files must hold."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def _stored_types(directory: Path) -> dict[str, torch.dtype]:
    """Return the types of the tensors in a directory's files."""
    from safetensors import SafetensorError, safe_open

    types: dict[str, torch.dtype] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    types[name] = STORED.get(file.get_slice(name).get_dtype(), torch.float32)
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
    return types


def _tensors(
    directory: Path, model: Transformer, wanted: dict[str, torch.Size] | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and value of each of a model's tensors, with one in memory at a time.

    Raises:
        UserError: a tensor is missing, unexpected, or differs from the shape in `wanted`.
    """
    from safetensors import SafetensorError, safe_open

    wanted = wanted or _shapes(model)
    missing = set(wanted)
    stored = _stored_types(directory)
    tied = model.config.tie_word_embeddings
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                names = list(file.keys())
            for key in names:
                if RECOMPUTED.search(key) or (key == HEAD and tied and EMBEDDINGS in stored):
                    continue
                # Tied embeddings may be stored under either name.
                name = EMBEDDINGS if key == HEAD and tied else key
                if name not in wanted:
                    raise UserError(
                        f"{path}: unexpected tensor {name}; is config.json of this model?"
                    )
                tensor = _read(path, key)
                if tensor.shape != wanted[name]:
                    raise UserError(
                        f"{path}: {name} has shape {tuple(tensor.shape)}, config.json asks for {tuple(wanted[name])}."
                    )
                if tensor.dtype not in FLOATS:
                    raise UserError(
                        f"{path}: {name} is of type {tensor.dtype}; expected float32, bfloat16 or float16."
                    )
                missing.discard(name)
                yield name, tensor
                del tensor
        except (OSError, SafetensorError) as error:
            raise _unreadable(path, error) from None
    if missing:
        raise UserError(
            f"{directory}: tensor {min(missing)} is missing (and {len(missing) - 1} more)."
        )


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} cannot be read ({error}). It may be truncated: copy or make it again."
    )


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a model directory.

    A single file has precedence over an index, which may be older.

    Raises:
        UserError: there are none, or the weights are pickled.
    """
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    index = directory / INDEX
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError):
            raise UserError(f"{index}: expected a `weight_map` of tensor names to files.") from None
        if any(Path(name).name != name for name in names):
            raise UserError(f"{index}: file names must not hold a path.")
        return [directory / name for name in names]
    if list(directory.glob("*.bin")) or list(directory.glob("*.pt*")):
        raise UserError(
            f"{directory} holds pickled weights, which can run code when loaded; convert them to safetensors first."
        )
    raise UserError(f"{directory}: no {WEIGHTS}. Run `dvc repro` to make it.")


def digests(directory: Path) -> dict[str, Any]:
    """Return the SHA-256 of each file that determines what a directory's model computes, by name."""
    paths = [directory / "config.json", *weight_files(directory)]
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file. It may be truncated: copy or make it again.")
    return {path.name: sha256(path) for path in paths}


def stop_ids(directory: Path, tokenizer: Tokenizer) -> frozenset[int]:
    """Return the tokens that end an answer: the tokenizer's and those of generation_config.json."""
    path = directory / "generation_config.json"
    content = (read_json(path) if path.is_file() else None) or {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object, found {type(content).__name__}.")
    eos = content.get("eos_token_id")
    return tokenizer.end_ids | {
        *(eos if isinstance(eos, list) else [eos] if eos is not None else [])
    }

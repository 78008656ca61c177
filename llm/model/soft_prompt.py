"""Soft prompts (Lester et al. 2021, arXiv:2104.08691), in PEFT's file format.

The vectors are the embeddings of virtual tokens, whose ids follow the vocabulary. The tokenizer puts
these ids before a conversation; packing, caches and decoding need no special case. The model never
predicts them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.errors import UserError
from llm.model.config import check_fields
from llm.model.transformer import Transformer
from llm.runtime.io import read_json, save_tensors, write_json

# A prompt is initialized with embeddings of tokens sampled from the first 5000 of the vocabulary
# (Lester et al., section 3.2).
COMMON = 5000

# Fields of PEFT's PromptTuningConfig that are read, or that do not affect a trained prompt.
FIELDS = {
    "peft_type", "num_virtual_tokens", "token_dim", "task_type", "base_model_name_or_path", "revision", "peft_version",
    "auto_mapping", "inference_mode", "num_attention_heads", "num_layers", "prompt_tuning_init",
    "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs",
}  # fmt: skip
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_transformer_submodules": (1, None),
    "modules_to_save": (None, []),
}


def add_prompt(model: Transformer, num_virtual_tokens: int, seed: int) -> tuple[int, ...]:
    """Freeze the model, add a soft prompt and return the ids of its virtual tokens.

    Raises:
        UserError: the prompt is not shorter than the context.
    """
    if num_virtual_tokens >= model.config.max_position_embeddings:
        raise UserError(
            f"finetune.prompt_tuning.num_virtual_tokens = {num_virtual_tokens} leaves nothing of the model's context "
            f"of {model.config.max_position_embeddings} tokens."
        )
    model.requires_grad_(False)
    embeddings = model.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(
        0, min(COMMON, len(embeddings)), (num_virtual_tokens,), generator=generator
    )
    model.soft_prompt = nn.Parameter(embeddings.detach()[tokens.to(embeddings.device)].float())
    return tuple(range(model.config.vocab_size, model.config.vocab_size + num_virtual_tokens))


def save_prompt(model: Transformer, directory: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` in PEFT's format."""
    assert model.soft_prompt is not None
    prompt = model.soft_prompt.detach().cpu().contiguous()
    save_tensors(
        {"prompt_embeddings": prompt},
        directory / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    write_json(
        directory / "adapter_config.json",
        {
            "peft_type": "PROMPT_TUNING",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "num_virtual_tokens": prompt.shape[0],
            "token_dim": prompt.shape[1],
            "num_transformer_submodules": 1,
            "num_attention_heads": model.config.num_attention_heads,
            "num_layers": model.config.num_hidden_layers,
            "prompt_tuning_init": "RANDOM",
            "inference_mode": True,
        },
    )


def load_prompt(model: Transformer, directory: Path) -> tuple[int, ...]:
    """Load the soft prompt of a PEFT directory and return the ids of its virtual tokens.

    Raises:
        UserError: a file is missing or broken, or the prompt has another width than the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    where = directory / "adapter_config.json"
    config = read_json(where)
    path = directory / "adapter_model.safetensors"
    if config.get("peft_type") != "PROMPT_TUNING":
        raise UserError(f"{where}: peft_type {config.get('peft_type')!r} is no soft prompt.")
    check_fields(config, FIELDS, NEUTRAL, str(where))
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read ({error}). It may be truncated: copy or make it again."
        ) from None
    shape = (config.get("num_virtual_tokens"), model.config.hidden_size)
    if set(tensors) != {"prompt_embeddings"} or tensors["prompt_embeddings"].shape != shape:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        raise UserError(
            f"{path} belongs to another model: it holds {shapes}, expected prompt_embeddings {shape}."
        )
    weight = model.model.embed_tokens.weight
    model.requires_grad_(False)
    model.soft_prompt = nn.Parameter(tensors["prompt_embeddings"].to(weight.device, torch.float32))
    return tuple(range(model.config.vocab_size, model.config.vocab_size + shape[0]))

"""Soft prompts (Lester et al. 2021, arXiv:2104.08691), in PEFT's file format.

The vectors stand behind the vocabulary as embeddings of virtual tokens: a tokenizer that puts their
ids in front of a conversation is all that packing, caches and decoding need to know. Nothing
predicts them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from llm.errors import UserError
from llm.model.config import check_fields
from llm.model.transformer import Transformer
from llm.runtime.io import read_json, save_tensors, write_json

# the first tokens of a vocabulary, of which a prompt starts as a sample (Lester et al., section
# 3.2)
COMMON = 5000

# Fields of PEFT's PromptTuningConfig: what is read, and what says nothing about a trained prompt.
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
    """Freeze the model and give it a soft prompt; returns the virtual tokens' ids.

    Raises:
        UserError: the prompt is longer than the context.
    """
    if num_virtual_tokens >= model.config.max_position_embeddings:
        raise UserError(
            f"finetune.prompt_tuning.num_virtual_tokens = {num_virtual_tokens} leaves nothing of the model's context "
            f"of {model.config.max_position_embeddings} tokens."
        )
    model.requires_grad_(False)
    embeddings = model.model.embed_tokens.weight
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(
        0, min(COMMON, len(embeddings)), (num_virtual_tokens,), generator=generator
    )
    model.soft_prompt = nn.Parameter(embeddings.detach()[chosen.to(embeddings.device)].float())
    return tuple(range(model.config.vocab_size, model.config.vocab_size + num_virtual_tokens))


def save_prompt(model: Transformer, directory: Path, base: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors` as PEFT reads them."""
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
    """Give the model the soft prompt of a PEFT directory; returns the virtual tokens' ids.

    Raises:
        UserError: the files are missing or broken, or of a model of another width.
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
    wanted = (config.get("num_virtual_tokens"), model.config.hidden_size)
    if set(tensors) != {"prompt_embeddings"} or tensors["prompt_embeddings"].shape != wanted:
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        raise UserError(
            f"{path} belongs to another model: it holds {shapes}, expected prompt_embeddings {wanted}."
        )
    weight = model.model.embed_tokens.weight
    model.requires_grad_(False)
    model.soft_prompt = nn.Parameter(tensors["prompt_embeddings"].to(weight.device, torch.float32))
    return tuple(range(model.config.vocab_size, model.config.vocab_size + wanted[0]))

"""Small models of every exportable kind."""

from __future__ import annotations

import pytest
import torch

from llm.model.config import Config
from llm.model.transformer import Transformer

BASE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
KINDS = {
    "llama": {},
    "llama-untied": {"tie_word_embeddings": False},
    "llama-multi-head": {"num_key_value_heads": 4},
    "mistral-window": {"sliding_window": 7},
    "qwen3": {"qk_norm": True},
    "qwen3-wide-heads": {"qk_norm": True, "head_dim": 32},
}


def random_model(seed: int = 0, **changes: object) -> Transformer:
    """A model whose every weight is random, also those that start at zero or one."""
    model = Transformer(Config(**{**BASE, **changes}))
    model.initialize(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> Transformer:
    return random_model(**KINDS[request.param])

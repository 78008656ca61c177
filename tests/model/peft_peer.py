"""Comparisons of a model here with one that `peft` adapts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llm.model.hf_files import save_model
from llm.model.transformer import Transformer


def ids() -> Tensor:
    return torch.randint(0, 300, (2, 20), generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, expected: Tensor, bound: float = 1e-5) -> None:
    """The largest difference is at most `bound` of the largest value."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def peer_base(base: Transformer, directory: Path) -> tuple[Any, Any]:
    """Return the module `peft`, and `base` as transformers reads it from `directory`."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `peers`")
    peft = pytest.importorskip("peft", reason="needs the extra `peers`")
    directory.mkdir()
    save_model(base, directory, directory, eos_id=0)
    return peft, transformers.AutoModelForCausalLM.from_pretrained(directory)


def moved(model: nn.Module, part: str) -> None:
    """Move every parameter whose name has `part` by random numbers, in place."""
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if part in name:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.1


def same_training(model: Transformer, peer: Any, part: str) -> None:
    """Logits, loss and all gradients of adapter parameters are equal in training mode."""
    model.train(), peer.train()
    targets = ids().roll(-1, 1)
    ours, theirs = model(ids()), peer(ids()).logits
    assert_close(ours, theirs)
    for logits in (ours, theirs):
        nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = {
        name.removeprefix("base_model.model.").split(".default")[0]: p.grad
        for name, p in peer.named_parameters()
        if p.requires_grad
    }
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == gradients.keys()
    assert all(part in name for name in trained)
    for name, gradient in trained.items():
        assert gradient is not None
        assert gradient.abs().max() > 0, name
        assert_close(gradient, gradients[name].reshape(gradient.shape), 1e-4)
    model.eval()

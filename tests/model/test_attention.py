"""Every form of attention gives the result of PyTorch's own in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from llm.model import attention
from llm.model.attention import MIN_QUERIES, attend

LENGTHS = [1, MIN_QUERIES - 1, MIN_QUERIES, MIN_QUERIES + 1, 4 * MIN_QUERIES, 4 * MIN_QUERIES + 3]


def inputs(seq: int, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(seq)
    q = torch.randn(2, 4, seq, 16, generator=random)
    k, v = torch.randn(2, 2, 2, keys, 16, generator=random)
    return q.requires_grad_(), k.clone().requires_grad_(), v.clone().requires_grad_()


def documents(seq: int) -> Tensor:
    """A causal mask that stops at every 50th token, and elsewhere in the other row."""
    at = torch.arange(seq)
    of = torch.stack((at // 50, at // 37))
    return (at[:, None] >= at) & (of[:, None, :, None] == of[:, None, None, :])


def reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
    """Output and gradients in float64."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    kk, vv = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    out = scaled_dot_product_attention(q, kk, vv, attn_mask=mask, is_causal=mask is None)
    return out, *torch.autograd.grad(out.square().sum(), (q, k, v))


@pytest.mark.parametrize("seq", LENGTHS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_form_for_compiling_equals_pytorchs_forward_and_backward(
    seq: int, masked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    q, k, v = inputs(seq, seq)
    mask = documents(seq) if masked else None
    out = attend(q, k, v, mask)
    gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
    for ours, theirs in zip((out, *gradients), reference(q, k, v, mask), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)


def test_a_cache_longer_than_the_queries_is_looked_at_as_its_mask_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    q, k, v = inputs(2 * MIN_QUERIES, 3 * MIN_QUERIES)
    mask = (
        torch.rand(2, 1, q.shape[2], k.shape[2], generator=torch.Generator().manual_seed(0)) < 0.5
    )
    torch.testing.assert_close(
        attend(q, k, v, mask).double(), reference(q, k, v, mask)[0], rtol=1e-4, atol=1e-5
    )


def test_queries_of_a_block_do_not_meet_the_keys_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    seen: list[tuple[int, int]] = []
    plain = attention._plain
    monkeypatch.setattr(
        attention,
        "_plain",
        lambda q, k, v, mask: (seen.append((q.shape[2], k.shape[2])), plain(q, k, v, mask))[1],
    )
    seq = attention.QUERY_BLOCKS * MIN_QUERIES
    attend(*inputs(seq, seq), None)
    assert seen == [
        (MIN_QUERIES, (block + 1) * MIN_QUERIES) for block in range(attention.QUERY_BLOCKS)
    ]

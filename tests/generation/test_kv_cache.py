"""The cached forms of attention are the plain one."""

from __future__ import annotations

import pytest
import torch

from llm.generation.kv_cache import QUERIES, Cache, prefill
from llm.model.attention import attend, attend_grouped, attend_in_blocks
from tests.model.conftest import KINDS, random_model


@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize("length", [1, 127, 128, 300])
def test_attention_in_blocks_of_queries_is_causal_attention(heads: int, length: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, n, length, 16, generator=generator) for n in (heads, 2, 2))
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    found = attend_in_blocks(attend_grouped, q, k, v, mask, QUERIES)
    torch.testing.assert_close(found, attend(q, k, v, None), rtol=1e-4, atol=1e-5)


def test_attention_over_a_cache_sees_what_the_mask_allows_and_nothing_else() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, 2, 16, generator=generator)
    keys, values = (torch.randn(3, 2, 10, 16, generator=generator) for _ in range(2))
    mask = torch.rand(3, 2, 10, generator=generator) < 0.5
    mask[..., 0] = True
    expected = attend(q, keys, values, mask[:, None])
    keys, values = (
        torch.where(mask.any(1)[:, None, :, None], part, 1e4) for part in (keys, values)
    )
    torch.testing.assert_close(
        attend_grouped(q, keys, values, mask[:, None]), expected, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prefill_gives_the_logits_of_the_whole_model(kind: str, dtype: torch.dtype) -> None:
    model = random_model(**KINDS[kind]).to(dtype)
    model.compute_dtype = dtype
    ids = torch.randint(0, 300, (1, 50), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = model(ids)[0, -1].float()
    found = prefill(model, ids[0].tolist(), Cache.empty(model, 2, 64), 1)
    torch.testing.assert_close(
        found,
        expected,
        **({"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.3}),
    )

"""The model on a cache of fixed shape: reading a prompt into one row, and a step of all rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llm.model.attention import attend
from llm.model.transformer import Layer, Transformer

COMPILED = "compiled_step"  # where a model keeps it
QUERIES = 128  # of a block that looks at the keys before its end
BLOCK = 64  # slots: a cache has a multiple of them, so that few shapes occur

StepFunction = Callable[[Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]


@dataclass(frozen=True)
class Cache:
    """Keys and values of each layer, (rows, kv_heads, slots, head_dim): a row is a sequence, a slot
    one of its tokens.

    A row's tokens stand at its first slots, so that no row depends on the length of another.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, model: Transformer, rows: int, slots: int) -> Cache:
        """Room for at least `slots` tokens in each of `rows` sequences."""
        c = model.config
        shape = (rows, c.num_key_value_heads, -(-slots // BLOCK) * BLOCK, c.head_dim)
        # One tensor a layer: of a slice of a common one, a compiled step would copy the whole at
        # each write.
        device, dtype = model.lm_head.weight.device, model.compute_dtype
        parts = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(2 * c.num_hidden_layers)
        ]
        return cls(parts[::2], parts[1::2])


@torch.inference_mode()
def prefill(model: Transformer, prompt: list[int], cache: Cache, row: int) -> Tensor:
    """Read a prompt, not empty, into a row of the cache; logits (vocab,) of what follows it,
    float32.

    Prompts are read one by one: a few hundred tokens fill a processor, and none is padded to
        another's length.
    """
    length = len(prompt)
    ids = torch.tensor([prompt], device=cache.keys[0].device)
    rotary = model.rotary(torch.arange(length, device=ids.device)[None])
    mask = model.causal_mask(length, None, ids.device)
    seen = (
        torch.ones(1, 1, 1, length, dtype=torch.bool, device=ids.device)
        if mask is None
        else mask[:, :, -1:]
    )
    by_blocks = ids.device.type == "cpu" and model.compute_dtype == torch.bfloat16
    x = model.embed(ids)
    for i, layer in enumerate(_layers(model)):
        q, k, v = layer.self_attn.project(layer.input_layernorm(x), rotary)
        cache.keys[i][row, :, :length], cache.values[i][row, :, :length] = k[0], v[0]
        if i == len(cache.keys) - 1:  # of the last layer's outputs only the last position's is read
            x, q, mask = x[:, -1:], q[:, :, -1:], seen
        if mask is not None:
            heads = attend(q, k, v, mask)
        else:
            heads = _causal_in_blocks(q, k, v) if by_blocks else attend(q, k, v, None)
        x = x + layer.self_attn.join(heads)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return model.lm_head(model.model.norm(x))[0, 0].float()


def _causal_in_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by plain matrix products: on a CPU in bfloat16 twice as fast as PyTorch's
    own kernel.
    """
    parts = []
    for start in range(0, q.shape[2], QUERIES):
        end = min(start + QUERIES, q.shape[2])
        mask = torch.ones(1, end - start, end, dtype=torch.bool).tril(start)
        parts.append(attend_cache(q[:, :, start:end], k[:, :, :end], v[:, :, :end], mask))
    return torch.cat(parts, dim=2)


class Step(nn.Module):
    """Reads the next token or tokens of every row."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, lengths: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        """Logits (rows, width, vocab), float32, of what follows each of `ids` (rows, width).

        lengths: (rows,) tokens that each row's cache holds; keys and values of `ids` are written
            behind them. The rows
        share one shape, so a row's logits do not depend on what the others hold.
        """
        model, (rows, width), slots = self.model, ids.shape, keys[0].shape[2]
        at = lengths[:, None] + torch.arange(
            width, device=ids.device
        )  # (rows, width): slots, and positions
        distance = at[:, :, None] - torch.arange(slots, device=ids.device)
        mask = (distance >= 0) & (distance < (model.config.sliding_window or slots))
        rotary = model.rotary(at)
        row = torch.arange(rows, device=ids.device)[:, None]
        x = model.embed(ids)
        for i, layer in enumerate(_layers(model)):
            q, k, v = layer.self_attn.project(layer.input_layernorm(x), rotary)
            keys[i][row, :, at], values[i][row, :, at] = k.transpose(1, 2), v.transpose(1, 2)
            x = x + layer.self_attn.join(attend_cache(q, keys[i], values[i], mask))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        return model.lm_head(model.model.norm(x)).float()


def _layers(model: Transformer) -> Iterable[Layer]:
    return cast("Iterable[Layer]", model.model.layers)


def attend_cache(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention (rows, heads, width, head_dim) of q, of that shape, over a cache (rows, kv_heads,
    slots, head_dim).

    mask: (rows, width, slots). The query heads of a key head are read as further queries: keys and
        values are neither
    copied nor widened, for they are most of what a step reads from memory.
    """
    rows, heads, width, size = q.shape
    kv_heads, slots = keys.shape[1], keys.shape[2]
    queries = q.reshape(rows, kv_heads, -1, size)
    # Of products with a single query the compiler makes loops, which take four times as long as the
    # library's kernel.
    alone = queries.shape[2] == 1 and q.device.type == "cpu" and torch.compiler.is_compiling()
    if alone:
        queries = queries.expand(-1, -1, 2, -1)
    scores = (queries @ keys.transpose(-1, -2)).float() * size**-0.5
    scores = scores.view(rows, kv_heads, -1, width, slots).masked_fill(
        ~mask[:, None, None], -torch.inf
    )
    weights = scores.softmax(-1).to(values.dtype).view(rows, kv_heads, -1, slots)
    found = weights @ values
    return (found[:, :, :1] if alone else found).reshape(rows, heads, width, size)


def compiled(model: Transformer) -> StepFunction:
    """A step whose kernels torch.compile writes for each shape of cache, with the weights frozen
    into them.

    Freezing lets the compiler lay the weights out as its matrix products read them; later changes
    of the weights are not seen. The step stays with its model, so that a second call compiles
    nothing."""
    found: StepFunction | None = model.__dict__.get(COMPILED)
    if found is None:
        step = torch.compile(Step(model), dynamic=False)
        shapes = set()
        on_cpu = (
            model.lm_head.weight.device.type == "cpu"
        )  # there, calls from Python cost as much as small kernels

        def found(ids: Tensor, lengths: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
            shape = (ids.shape, keys[0].shape)
            known = shape in shapes
            shapes.add(shape)
            with (
                nullcontext()
                if known
                else torch._inductor.config.patch(freezing=True, cpp_wrapper=on_cpu)
            ):
                return cast(Tensor, step(ids, lengths, keys, values))

        model.__dict__[COMPILED] = found
    return found

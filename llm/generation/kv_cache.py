"""The model on a cache of fixed shape: reading a prompt into one row, and a step of all rows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from llm.model.attention import attend, attend_grouped, attend_in_blocks
from llm.model.transformer import Transformer

COMPILED = "compiled_step"  # the model's attribute that holds its compiled step
QUERIES = 128  # queries in a block of a prompt
BLOCK = 64  # a cache has a multiple of these slots, so that few shapes occur

StepFunction = Callable[[Tensor, Tensor, list[Tensor], list[Tensor]], Tensor]


@dataclass(frozen=True)
class Cache:
    """Keys and values of each layer, (rows, kv_heads, slots, head_dim).

    A row is a sequence, a slot one of its tokens. A row's tokens stand at its first slots, so that
    no row depends on the length of another.
    """

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, model: Transformer, rows: int, slots: int) -> Cache:
        """Return a cache with room for at least `slots` tokens in each of `rows` sequences."""
        c = model.config
        shape = (rows, c.num_key_value_heads, -(-slots // BLOCK) * BLOCK, c.head_dim)
        # One tensor a layer: a compiled step would copy a common tensor whole at each write.
        device, dtype = model.lm_head.weight.device, model.compute_dtype
        parts = [
            torch.zeros(shape, device=device, dtype=dtype) for _ in range(2 * c.num_hidden_layers)
        ]
        return cls(parts[::2], parts[1::2])


class PromptCache:
    """One layer's part of a row that a prompt is read into; a `LayerCache`."""

    def __init__(self, keys: Tensor, values: Tensor, last_only: bool) -> None:
        """Take the row's keys and values (1, kv_heads, slots, head_dim).

        `last_only`: return outputs of the last position only; nothing reads the others of the last
        layer.
        """
        self.keys, self.values, self.last_only = keys, values, last_only

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store keys and values at the first slots; the prompt attends to itself."""
        length = k.shape[2]
        self.keys[:, :, :length], self.values[:, :, :length] = k, v
        if self.last_only:
            if mask is None:
                mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=q.device)
            return attend(q[:, :, -1:], k, v, mask[:, :, -1:])
        if mask is None and q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # Twice as fast as PyTorch's own kernel on a CPU.
            mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
            return attend_in_blocks(attend_grouped, q, k, v, mask, QUERIES)
        return attend(q, k, v, mask)


class StepCache:
    """One layer's part of all rows in a decoding step; a `LayerCache`."""

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor, slots: Tensor) -> None:
        """Take keys and values (rows, kv_heads, slots, head_dim), and where the step writes.

        rows: (rows, 1); slots: (rows, width).
        """
        self.keys, self.values, self.rows, self.slots = keys, values, rows, slots

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Store keys and values at the step's slots; queries attend to the whole cache."""
        assert mask is not None
        self.keys[self.rows, :, self.slots] = k.transpose(1, 2)
        self.values[self.rows, :, self.slots] = v.transpose(1, 2)
        return attend_grouped(q, self.keys, self.values, mask)


@torch.inference_mode()
def prefill(model: Transformer, prompt: list[int], cache: Cache, row: int) -> Tensor:
    """Read a prompt into a row of the cache; return the logits (vocab,) of what follows, float32.

    Prompts are read one by one: a few hundred tokens fill a processor, and none is padded to
    another's length. A prompt must not be empty.
    """
    last = len(cache.keys) - 1
    layers = [
        PromptCache(keys[row : row + 1], values[row : row + 1], number == last)
        for number, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True))
    ]
    ids = torch.tensor([prompt], device=cache.keys[0].device)
    return model(ids, cache=layers)[0, 0].float()


class Step(nn.Module):
    """Reads the next token or tokens of every row."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, lengths: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        """Return logits (rows, width, vocab), float32, of what follows each of `ids` (rows, width).

        All rows share one shape, so a row's logits do not depend on what the others hold.

        Args:
            lengths: (rows,) tokens that each row's cache holds; keys and values of `ids` are
                written behind them.
            keys: one tensor a layer, as in `Cache`; `values` likewise.
        """
        (rows, width), size = ids.shape, keys[0].shape[2]
        slots = lengths[:, None] + torch.arange(width, device=ids.device)  # they are positions too
        distance = slots[:, :, None] - torch.arange(size, device=ids.device)
        mask = (distance >= 0) & (distance < (self.model.config.sliding_window or size))
        row = torch.arange(rows, device=ids.device)[:, None]
        cache = [StepCache(k, v, row, slots) for k, v in zip(keys, values, strict=True)]
        return self.model(ids, positions=slots, mask=mask[:, None], cache=cache).float()


def compiled(model: Transformer) -> StepFunction:
    """Return a step that torch.compile writes for each shape of cache, with frozen weights.

    Freezing lets the compiler lay the weights out as its matrix products read them; later changes
    of the weights have no effect. The step stays with its model, so that a second call compiles
    nothing."""
    run: StepFunction | None = model.__dict__.get(COMPILED)
    if run is None:
        step = torch.compile(Step(model), dynamic=False)
        shapes = set()
        # On a CPU, calls from Python cost as much as small kernels.
        on_cpu = model.lm_head.weight.device.type == "cpu"

        def run(ids: Tensor, lengths: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
            shape = (ids.shape, keys[0].shape)
            known = shape in shapes
            shapes.add(shape)
            with (
                nullcontext()
                if known
                else torch._inductor.config.patch(freezing=True, cpp_wrapper=on_cpu)
            ):
                return cast(Tensor, step(ids, lengths, keys, values))

        model.__dict__[COMPILED] = run
    return run

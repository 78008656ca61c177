"""Counts of what a method of finetuning trains and keeps beside the base, for the memory plan."""

from __future__ import annotations

from dataclasses import dataclass

from llm.model.config import Config
from llm.model.ia3 import TARGETS
from llm.params import Finetune


@dataclass(frozen=True)
class AdapterSize:
    """Numbers, not bytes, that an adapter needs; `NO_ADAPTER`: the whole model is trained.

    matrices: trained numbers in matrices of the layers, which go to Muon where it is asked for.
    vectors: all other trained numbers, which go to AdamW.
    outputs: activations a token and layer that are kept for the backward pass beside LoRA's.
    working: float32 numbers that one module needs while it computes.
    """

    matrices: int
    vectors: int
    outputs: int = 0
    working: int = 0

    @property
    def parameters(self) -> int:
        """All trained numbers."""
        return self.matrices + self.vectors


NO_ADAPTER = AdapterSize(0, 0)


def adapter_size(config: Config, s: Finetune) -> AdapterSize:
    """Return the counts of `finetune.method` for a base of this shape.

    LoRA trains r · (rows + columns) of each matrix (Hu et al. 2021, arXiv:2106.09685). DoRA trains
    a number for each row besides, keeps what it scales, and computes the rows' norms from a copy of
    the matrix, its update and their sum. IA3 keeps the outputs that it scales; the input that it
    scales is counted in any layer.
    """
    shapes, layers = _shapes(config), config.num_hidden_layers
    if s.method == "full":
        return NO_ADAPTER
    if s.method == "prompt_tuning":
        return AdapterSize(0, s.prompt_tuning.num_virtual_tokens * config.hidden_size)
    if s.method == "ia3":
        keys, values, (_, inside) = (shapes[target] for target in TARGETS)
        scaled = keys[0] + values[0]
        return AdapterSize(0, layers * (scaled + inside), outputs=scaled)
    targets = [shapes[target] for target in s.lora.target_modules if target in shapes]
    matrices = layers * s.lora.r * sum(rows + columns for rows, columns in targets)
    if s.method != "dora":
        return AdapterSize(matrices, 0)
    rows = sum(rows for rows, _ in targets)
    working = 3 * max((rows * columns for rows, columns in targets), default=0)
    return AdapterSize(matrices, layers * rows, outputs=rows, working=working)


def _shapes(config: Config) -> dict[str, tuple[int, int]]:
    """Return rows and columns of a layer's matrices."""
    h, i = config.hidden_size, config.intermediate_size
    q, kv = (
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    return {
        "q_proj": (q, h), "k_proj": (kv, h), "v_proj": (kv, h), "o_proj": (h, q),
        "gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i),
    }  # fmt: skip

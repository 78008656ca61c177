"""The reference of `recipe`: a GPT-2 as nanoGPT trains it (LayerNorm, GELU, learned positions, tied
embeddings).

Written for this comparison; the recipe's numbers (initialisation, AdamW's groups and betas, cosine
to a tenth) are those of karpathy/nanoGPT. It computes in the same way as our model (bf16
activations where the hardware has them, one compiled layer), so that only the recipe differs, not
the rounding."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm.model.attention import attend


class Linear(nn.Linear):
    """Without bias; the float32 weight is cast to the activations' type."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__(rows, columns, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class LayerNorm(nn.Module):
    """Without bias, computed in float32."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, eps=1e-5).to(x.dtype)


class Block(nn.Module):
    """Attention and a GELU of four times the width, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = LayerNorm(width), LayerNorm(width)
        self.c_attn, self.attn_proj = Linear(width, 3 * width), Linear(width, width)
        self.c_fc, self.mlp_proj = Linear(width, 4 * width), Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, seq, width = x.shape
        q, k, v = (
            part.view(batch, seq, self.heads, -1).transpose(1, 2)
            for part in self.c_attn(self.ln_1(x)).chunk(3, -1)
        )
        x = x + self.attn_proj(attend(q, k, v, None).transpose(1, 2).reshape(batch, seq, width))
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Token and learned position embeddings, blocks, LayerNorm, tied output."""

    def __init__(
        self, vocab: int, width: int, layers: int, heads: int, block: int, seed: int
    ) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, width), nn.Embedding(block, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln_f = LayerNorm(width)
        self.compute_dtype = torch.float32
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if (
                parameter.dim() == 2
            ):  # GPT-2: 0.02, into the residual stream less by the root of the additions to it
                std = 0.02 / math.sqrt(2 * layers) if name.endswith("proj.weight") else 0.02
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def loss(self, input_ids: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy (nats) of `targets` (batch, seq)."""
        positions = torch.arange(input_ids.shape[1])
        x = (self.wte(input_ids) + self.wpe(positions)).to(self.compute_dtype)
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight.to(x.dtype)).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")

    def optimizer(self, rate: float) -> torch.optim.AdamW:
        """AdamW, weight decay 0.1 on matrices, betas 0.9 and 0.95."""
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        groups = [
            {"params": matrices, "weight_decay": 0.1},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)

"""The decoder-only transformer. Modules carry Hugging Face's names, so a state dict is a
Llama/Qwen3 checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llm.model.attention import Attention, LayerCache, Linear, Pair, RMSNorm, rotary_table
from llm.model.config import Config
from llm.model.loss import ChunkLoss, chunk_loss, cross_entropy
from llm.model.sharded_tensor import fill


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, config.mlp_bias)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, rotary: Pair, mask: Tensor | None, cache: LayerCache | None = None
    ) -> Tensor:
        """Return the residual stream (batch, seq, hidden) after this layer; see `Attention.forward`.

        Where the cache returns outputs of the last position only, seq becomes 1.
        """
        attended = self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        if attended.shape[1] < x.shape[1]:
            x = x[:, -attended.shape[1] :]
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and final norm (`model.` in a Hugging Face checkpoint)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        weight = torch.empty(config.vocab_size, config.hidden_size)
        if not weight.is_meta:  # there normal_ would only load PyTorch's compiler, for two seconds
            nn.init.normal_(weight)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, _weight=weight)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """A causal language model.

    Weights are float32 masters; `compute_dtype` is the type of the activations (bfloat16: mixed
    precision)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = torch.float32
        self.grad_checkpointing = (
            False  # recompute each layer in the backward pass instead of keeping its activations
        )
        self.chunk_loss: ChunkLoss = chunk_loss
        self.model = Decoder(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.fill: Callable[[], None] | None = (
            None  # on the meta device, to be sharded: what gives it its values then
        )
        self.soft_prompt: nn.Parameter | None = (
            None  # (virtual tokens, hidden), behind the vocabulary
        )

    @property
    def embedding_std(self) -> float:
        """Standard deviation of a new embedding: the scale of the residual stream at the start."""
        return 0.02 if self.config.tie_word_embeddings else 1.0

    def initialize(self, seed: int) -> None:
        """Draw the weights: a pure function of the seed and the dimensions, on any device.

        Embeddings N(0, 1) and the output projection N(0, 0.001²), or both N(0, 0.02²) where they
        are one matrix; matrices N(0, 1/fan_in), LeCun's scale; projections back into the residual
        stream zero, so that every layer starts as the identity (Zhang et al. 2019,
        arXiv:1901.09321)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                value = torch.ones(parameter.shape)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                value = torch.zeros(parameter.shape)
            else:
                std = {
                    "model.embed_tokens.weight": self.embedding_std,
                    "lm_head.weight": 0.001,
                }.get(name, parameter.shape[1] ** -0.5)
                value = torch.randn(parameter.shape, generator=generator) * std
            fill(parameter, value)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        segments: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Sequence[LayerCache] | None = None,
    ) -> Tensor:
        """Return the final hidden states (batch, seq, hidden).

        Training, evaluation, prefill and decoding steps all run this forward pass.

        Args:
            input_ids: (batch, seq).
            positions: (batch, seq), default 0 … seq-1.
            segments: (batch, seq); attention stays within equal numbers (packed documents or
                examples).
            mask: (batch, 1, seq, keys), true where a query may look; replaces the causal mask.
            cache: one for each layer, where keys and values are kept for later steps.
        """
        if positions is None:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        rotary = self.rotary(positions)
        if mask is None:
            mask = self.causal_mask(input_ids.shape[1], segments, input_ids.device)
        x = self.embed(input_ids)
        for number, layer in enumerate(self.model.layers):
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, x, rotary, mask, use_reentrant=False)
            elif cache is None:
                x = layer(x, rotary, mask)
            else:
                x = layer(x, rotary, mask, cache[number])
        return self.model.norm(x)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embeddings (batch, seq, hidden) of ids (batch, seq); ids behind the vocabulary are a soft
        prompt's.
        """
        if self.soft_prompt is None:
            return F.embedding(input_ids, self.model.embed_tokens.weight).to(self.compute_dtype)
        last = self.config.vocab_size - 1
        words = F.embedding(input_ids.clamp(max=last), self.model.embed_tokens.weight)
        virtual = F.embedding((input_ids - last - 1).clamp(min=0), self.soft_prompt)
        return torch.where((input_ids > last)[..., None], virtual, words.to(virtual.dtype)).to(
            self.compute_dtype
        )

    def rotary(self, positions: Tensor) -> Pair:
        """Cosines and sines (batch, 1, seq, head_dim) of positions (batch, seq)."""
        cos, sin = rotary_table(self.config, positions)
        return cos[:, None].to(self.compute_dtype), sin[:, None].to(self.compute_dtype)

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Tensor:
        """Return logits (batch, seq, vocab); the arguments are those of `hidden_states`."""
        return self.lm_head(self.hidden_states(input_ids, **kwargs))

    def loss(
        self,
        input_ids: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        positions: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> Tensor:
        """Summed cross-entropy (nats, a float32 scalar) of `targets` (batch, seq); -100 marks
        positions without one. `factors` (batch, seq) multiply each token's loss.
        """
        hidden = self.hidden_states(input_ids, positions, segments)
        return cross_entropy(hidden, self.lm_head.weight, targets, self.chunk_loss, factors)

    def compile_parts(self) -> None:
        """Compile one layer, used for all of them, and the loss.

        Compiling the layer instead of the whole costs 3 % of speed and saves three quarters of the
        time to the first step (docs/LOG.md). Fixed shapes: a resumed run must compile the very
        kernels of the one that was killed."""
        for layer in self.model.layers:
            if self.fill is None:
                layer.compile(dynamic=False)
            else:  # sharded: the hooks that gather its weights stay outside
                layer.forward = torch.compile(layer.forward, dynamic=False)
        self.chunk_loss = torch.compile(chunk_loss, dynamic=False)

    def causal_mask(self, seq: int, segments: Tensor | None, device: torch.device) -> Tensor | None:
        """Return true where a query may look, (batch or 1, 1, seq, seq); None for a plain causal mask."""
        window = self.config.sliding_window
        if segments is None and (window is None or window >= seq):
            return None  # plain causal
        index = torch.arange(seq, device=device)
        distance = index[:, None] - index[None, :]
        allowed = distance >= 0
        if window is not None:
            allowed = allowed & (distance < window)
        allowed = allowed[None, None]
        if segments is not None:
            allowed = allowed & (segments[:, None, :, None] == segments[:, None, None, :])
        return allowed

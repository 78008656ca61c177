"""Model dimensions under Hugging Face's names, and the `config.json` they are stored in."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from llm.errors import UserError


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, grouped-query attention, no biases."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    qk_norm: bool = False
    sliding_window: int | None = None

    @property
    def architecture(self) -> str:
        """The `transformers` class that computes the same function."""
        if self.qk_norm:
            return "Qwen3ForCausalLM"
        return "MistralForCausalLM" if self.sliding_window else "LlamaForCausalLM"

    def parameters(self) -> int:
        """Number of parameters; tied embeddings count once."""
        heads = self.num_attention_heads * self.head_dim
        kv_heads = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * heads + 2 * kv_heads) + (2 * self.head_dim if self.qk_norm else 0)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size

    def flops_per_token(self, sequence_length: int) -> float:
        """Training FLOPs per token, forward and backward.

        6 for each weight of a matrix product (Kaplan et al. 2020, arXiv:2001.08361, eq. 2.2; the output projection
        counts, the embedding look-up does not) plus 12·layers·heads·head_dim·context for attention scores and values
        (Chowdhery et al. 2022, arXiv:2204.02311, appendix B), of which the causal half is computed.
        """
        look_up = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        norms = self.hidden_size * (2 * self.num_hidden_layers + 1)
        products = self.parameters() - look_up - norms
        context = min(sequence_length, self.sliding_window or sequence_length)
        attention = 6 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context
        return float(6 * products + attention)

    def to_json(self, eos_id: int, dtype: str = "float32") -> dict[str, Any]:
        """What `transformers` reads as `config.json`."""
        values = asdict(self)
        qk_norm = values.pop("qk_norm")
        del qk_norm
        model_type = {"Qwen3ForCausalLM": "qwen3", "MistralForCausalLM": "mistral", "LlamaForCausalLM": "llama"}
        config = {
            "architectures": [self.architecture],
            "model_type": model_type[self.architecture],
            **values,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": eos_id,
            "eos_token_id": eos_id,
            "pad_token_id": eos_id,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "dtype": dtype,
        }
        if self.architecture == "Qwen3ForCausalLM":
            config["use_sliding_window"] = False
        return config

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> Config:
        """Read a `config.json`; refuse what this model does not compute, by name.

        Raises:
            UserError: another architecture, a missing field, or a field whose value would change the function.
        """
        architecture = (data.get("architectures") or ["(none)"])[0]
        known = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM")
        if architecture not in known:
            raise UserError(f"{where}: architecture {architecture} is not supported; supported: {', '.join(known)}.")
        for key, neutral in (("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False)):
            if data.get(key, neutral) != neutral:
                raise UserError(f"{where}: {key} = {data[key]!r} is not supported; expected {neutral!r}.")
        rope = data.get("rope_parameters") or data.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise UserError(f"{where}: rotary scaling {rope!r} is not supported; expected rope_type 'default'.")
        if architecture == "Qwen3ForCausalLM" and data.get("use_sliding_window"):
            raise UserError(f"{where}: use_sliding_window = true is not supported for Qwen3.")
        try:
            heads, hidden = data["num_attention_heads"], data["hidden_size"]
            return cls(
                vocab_size=data["vocab_size"],
                hidden_size=hidden,
                intermediate_size=data["intermediate_size"],
                num_hidden_layers=data["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=data.get("num_key_value_heads") or heads,
                head_dim=data.get("head_dim") or hidden // heads,
                max_position_embeddings=data["max_position_embeddings"],
                rope_theta=float(rope.get("rope_theta", data.get("rope_theta", 10000.0))),
                rms_norm_eps=data["rms_norm_eps"],
                tie_word_embeddings=data.get("tie_word_embeddings", False),
                qk_norm=architecture == "Qwen3ForCausalLM",
                sliding_window=data.get("sliding_window") if architecture == "MistralForCausalLM" else None,
            )
        except KeyError as error:
            raise UserError(f"{where}: the field {error} is missing.") from None

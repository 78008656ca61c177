"""Model dimensions with Hugging Face's names, and the `config.json` that stores them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from llm.errors import UserError, say_once
from llm.model.rope_config import read_rope

MODEL_TYPES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
}
DIMENSIONS = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
}
DIMENSIONS |= {
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "rms_norm_eps",
    "tie_word_embeddings",
}
ROTARY = {"rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"}
# Fields of a config.json with the values that are supported; any other value would change what the
# model computes.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_dropout": (0, None),
    "pretraining_tp": (1, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
    "quantization_config": (None,),
    "compression_config": (None,),
    "auto_map": (None,),
    "pruned_heads": ({}, None),
    "use_qk_norm": (None,),
    "rope_interleaved": (False, None),  # SmolLM2: rotary pairs are not neighbours
    "is_llama_config": (True, None),
    "use_mrope": (False, None),
}
# Fields that do not affect what the model computes: ids, provenance, and settings of generation or
# training.
SILENT = {
    "architectures", "model_type", "_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "sep_token_id", "decoder_start_token_id",
    "initializer_range", "output_hidden_states", "output_attentions", "return_dict", "id2label", "label2id",
    "problem_type", "tokenizer_class", "prefix", "task_specific_params", "transformers.js_config", "unsloth_fixed",
    "unsloth_version", "max_window_layers", "is_decoder", "tie_encoder_decoder", "finetuning_task", "torchscript",
    "ddp_enable_logging", "temperature", "top_k", "top_p", "do_sample", "max_length",
    "cls_token_id", "mask_token_id", "forced_bos_token_id", "forced_eos_token_id", "keys_to_ignore_at_inference",
    "num_beams", "num_beam_groups", "num_return_sequences", "typical_p", "repetition_penalty", "length_penalty",
    "use_flash_attn", "max_sequence_length", "gradient_checkpointing",
}  # fmt: skip


def check_fields(
    data: Mapping[str, Any],
    known: Collection[str],
    neutral: Mapping[str, tuple[Any, ...]],
    where: str,
) -> None:
    """Refuse fields of a configuration file that would change the model but are not supported.

    An unknown field is ignored, with one message, if it is private (`_…`) or its value means "off"
    (null, false, 0, or empty).

    Args:
        data: the content of the file.
        known: fields that are read, or that do not affect what the model computes.
        neutral: other known fields, with the values that are supported.
        where: the file, for messages.

    Raises:
        UserError: a field of `neutral` has another value, or an unknown field is set.
    """
    ignored = []
    for key, value in data.items():
        if key in known:
            continue
        if key in neutral:
            if value not in neutral[key]:
                raise UserError(
                    f"{where}: {key} = {value!r} is not supported; expected {neutral[key][0]!r}."
                )
        elif value and not key.startswith("_"):
            raise UserError(
                f"{where}: the field {key} = {value!r} is unknown and would be ignored. If it does not change "
                "what the model computes, remove it from the file."
            )
        else:
            ignored.append(f"{key} = {value!r}")
    if ignored:
        say_once(
            f"{where}: ignored, since it does not change what the model computes: {', '.join(ignored)}."
        )


@dataclass(frozen=True)
class Config:
    """A decoder-only transformer: RMSNorm, rotary positions, SwiGLU, grouped-query attention.

    Models trained by this pipeline have no biases and plain rotary positions. The fields from
    `sliding_window` on are for checkpoints of other projects.
    """

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
    qkv_bias: bool = False  # biases of q_proj, k_proj and v_proj (Qwen2)
    attention_bias: bool = False  # biases of these and o_proj (Llama, Qwen3)
    mlp_bias: bool = False
    # `rope_type` and its fields: llm/model/rope_config.py.
    rope_scaling: dict[str, Any] | None = None
    # The checkpoint's own class, if the rule of `architecture` would choose another.
    stock_class: str | None = None

    @property
    def architecture(self) -> str:
        """Return the `transformers` class that computes the same function."""
        if self.stock_class:
            return self.stock_class
        if self.qk_norm:
            return "Qwen3ForCausalLM"
        if self.qkv_bias:
            return "Qwen2ForCausalLM"
        return "MistralForCausalLM" if self.sliding_window else "LlamaForCausalLM"

    def parameters(self) -> int:
        """Return the number of parameters; tied embeddings count once."""
        heads = self.num_attention_heads * self.head_dim
        kv_heads = self.num_key_value_heads * self.head_dim
        attention = self.hidden_size * (2 * heads + 2 * kv_heads) + (
            2 * self.head_dim if self.qk_norm else 0
        )
        if self.qkv_bias or self.attention_bias:
            attention += heads + 2 * kv_heads + (self.hidden_size if self.attention_bias else 0)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        if self.mlp_bias:
            layer += 2 * self.intermediate_size + self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * layer + embeddings + self.hidden_size

    def flops_per_token(self, sequence_length: int) -> float:
        """Return the training FLOPs per token, forward and backward.

        They are 6 for each weight of a matrix product (Kaplan et al. 2020, arXiv:2001.08361, eq.
        2.2; the output projection counts, the embedding look-up does not) plus half of
        12·layers·heads·head_dim·context for attention scores and values (Chowdhery et al. 2022,
        arXiv:2204.02311, appendix B), since only the causal half is computed.
        """
        look_up = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        norms = self.hidden_size * (2 * self.num_hidden_layers + 1)
        products = self.parameters() - look_up - norms
        context = min(sequence_length, self.sliding_window or sequence_length)
        attention = 6 * self.num_hidden_layers * self.num_attention_heads * self.head_dim * context
        return float(6 * products + attention)

    def to_json(self, eos_id: int, dtype: str = "float32") -> dict[str, Any]:
        """Return the content of a `config.json` for `transformers`."""
        values = asdict(self)
        for key in (
            "qk_norm",
            "qkv_bias",
            "attention_bias",
            "mlp_bias",
            "rope_scaling",
            "stock_class",
        ):
            del values[key]
        kind = self.architecture
        config = {
            "architectures": [kind],
            "model_type": MODEL_TYPES[kind],
            **values,
            "hidden_act": "silu",
            "attention_bias": self.attention_bias,
            "attention_dropout": 0.0,
            "mlp_bias": self.mlp_bias,
            "initializer_range": 0.02,
            "use_cache": True,
            "bos_token_id": eos_id,
            "eos_token_id": eos_id,
            "pad_token_id": eos_id,
            "rope_parameters": {
                **(self.rope_scaling or {"rope_type": "default"}),
                "rope_theta": self.rope_theta,
            },
            "dtype": dtype,
        }
        if kind in ("Qwen2ForCausalLM", "Qwen3ForCausalLM"):
            config["use_sliding_window"] = False
        return config

    @classmethod
    def from_json(cls, data: dict[str, Any], where: str) -> Config:
        """Read a `config.json`.

        Args:
            data: the content of the file.
            where: the file, for messages.

        Raises:
            UserError: the architecture is not supported, a field is missing or unknown, or its
                value is not supported.
        """
        architecture = (data.get("architectures") or ["(none)"])[0]
        if architecture not in MODEL_TYPES:
            raise UserError(
                f"{where}: architecture {architecture} is not supported; supported: {', '.join(MODEL_TYPES)}."
            )
        qwen, llama = architecture.startswith("Qwen"), architecture == "LlamaForCausalLM"
        neutral = dict(NEUTRAL)
        own = set()
        if architecture == "MistralForCausalLM":
            own.add("sliding_window")
        elif qwen:
            # `transformers` writes sliding_window, but ignores it while use_sliding_window is false.
            neutral["use_sliding_window"] = (False,)
            own.add("sliding_window")
        else:
            neutral["sliding_window"] = (None,)
        for key, supported in (
            ("attention_bias", llama or architecture == "Qwen3ForCausalLM"),
            ("mlp_bias", llama),
        ):
            if supported:
                own.add(key)
            else:
                neutral[key] = (False,)
        check_fields(data, {"layer_types"} | own | DIMENSIONS | ROTARY | SILENT, neutral, where)
        expected = (
            "sliding_attention" if data.get("sliding_window") and not qwen else "full_attention"
        )
        kinds = set(data.get("layer_types") or ())
        if kinds - {expected}:
            raise UserError(
                f"{where}: layer_types = {sorted(kinds)} is not supported; all {expected!r}."
            )
        for key in sorted(DIMENSIONS - {"rms_norm_eps", "tie_word_embeddings"}):
            value = data.get(key)
            if value is not None and (
                not isinstance(value, int) or isinstance(value, bool) or value < 1
            ):
                raise UserError(f"{where}: {key} = {value!r}; expected a whole number above 0.")
        try:
            heads, hidden = data["num_attention_heads"], data["hidden_size"]
            theta, scaling = read_rope(data, data["max_position_embeddings"], where)
            config = cls(
                vocab_size=data["vocab_size"],
                hidden_size=hidden,
                intermediate_size=data["intermediate_size"],
                num_hidden_layers=data["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=data.get("num_key_value_heads") or heads,
                head_dim=data.get("head_dim") or hidden // heads,
                max_position_embeddings=data["max_position_embeddings"],
                rope_theta=theta,
                rms_norm_eps=data["rms_norm_eps"],
                tie_word_embeddings=data.get("tie_word_embeddings", False),
                qk_norm=architecture == "Qwen3ForCausalLM",
                sliding_window=data.get("sliding_window")
                if architecture == "MistralForCausalLM"
                else None,
                qkv_bias=architecture == "Qwen2ForCausalLM",
                attention_bias=data.get("attention_bias", False),
                mlp_bias=data.get("mlp_bias", False),
                rope_scaling=scaling,
            )
        except KeyError as error:
            raise UserError(f"{where}: the field {error} is missing.") from None
        config._check(where)
        return (
            config
            if config.architecture == architecture
            else replace(config, stock_class=architecture)
        )

    def _check(self, where: str) -> None:
        """Check that the dimensions are consistent.

        Raises:
            UserError: they are not.
        """
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"{where}: num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})."
            )
        if self.head_dim % 2:
            raise UserError(
                f"{where}: head_dim ({self.head_dim}) must be even: rotary positions turn pairs."
            )

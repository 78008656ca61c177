"""`model`, and the training stages `pretrain` and `finetune`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from llm.params.section import Fraction, Positive, Section

SCRATCH = "data/tokenizer"  # the value of pretrain.init for "from scratch"
BASE = "models/base"  # the value of finetune.base for the model that pretrain made


class Model(Section):
    """Dimensions under Hugging Face's names; the vocabulary comes from the tokenizer."""

    depth: Positive | None = None
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    head_dim: Positive
    max_position_embeddings: Positive
    rope_theta: Annotated[float, Field(gt=0)]
    rms_norm_eps: Annotated[float, Field(gt=0)]
    tie_word_embeddings: bool
    qk_norm: bool
    sliding_window: Positive | None

    def dimensions(self) -> dict[str, Any]:
        """Return the arguments of `llm.model.config.Config`: all but the dial `depth`."""
        return self.model_dump(exclude={"depth"})

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.sliding_window is not None and self.qk_norm:
            raise ValueError(
                "sliding_window and qk_norm together have no Hugging Face class; set one of them off"
            )
        return self


class Training(Section):
    """The params that pretrain and finetune share: one engine trains both."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    batch_tokens: Positive
    sequence_length: Annotated[int, Field(ge=8)]
    optimizer: Literal["muon", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
    embedding_lr_multiplier: Annotated[float, Field(gt=0)] = 1.0
    weight_decay: Annotated[float, Field(ge=0)]
    betas: tuple[Fraction, Fraction]
    grad_clip: Annotated[float, Field(gt=0)]
    schedule: Literal["wsd", "cosine"]
    warmup_fraction: Fraction
    decay_fraction: Annotated[float, Field(ge=0.0, le=1.0)]
    min_lr_fraction: Annotated[float, Field(ge=0.0, le=1.0)]
    eval_every: Positive
    eval_tokens: Positive
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto"] | bool
    grad_checkpointing: bool = False
    deterministic: bool = False

    @model_validator(mode="after")
    def _whole_sequences(self) -> Training:
        if self.batch_tokens % self.sequence_length:
            raise ValueError(
                f"batch_tokens ({self.batch_tokens}) must be a multiple of sequence_length ({self.sequence_length})"
            )
        if self.warmup_fraction + self.decay_fraction > 1 and self.schedule == "wsd":
            raise ValueError("warmup_fraction + decay_fraction must be at most 1")
        return self


class Pretrain(Training):
    init: Annotated[str, Field(min_length=1)] = SCRATCH
    tokens: Positive
    induction_init: bool
    attend_across_documents: bool

    @property
    def steps(self) -> int:
        """The number of optimizer steps, rounded up, at least one."""
        return max(1, -(-self.tokens // self.batch_tokens))


class Lora(Section):
    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Fraction
    target_modules: Annotated[list[str], Field(min_length=1)]
    rslora: bool = False


class PromptTuning(Section):
    num_virtual_tokens: Positive = 20


class Finetune(Training):
    base: Annotated[str, Field(min_length=1)] = BASE
    method: Literal["lora", "qlora", "dora", "ia3", "full", "prompt_tuning"]
    lora: Lora
    prompt_tuning: PromptTuning = PromptTuning()
    epochs: Annotated[float, Field(gt=0)]
    prompt_loss_weight: Annotated[float, Field(ge=0, le=1)] = 0.0
    loss_per: Literal["token", "example"] = "token"

"""Typed `params.yaml`.

The file is the only source of truth. It is read once, at the boundary, into frozen models; a key that is unknown
or a value that is impossible is refused by name, with the nearest valid name, before any work starts.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from llm import scaling
from llm.errors import UserError

Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A frozen group of params; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# -- download ---------------------------------------------------------------------------------------------------------


class SourceBase(Section):
    kind: str | None = None  # of task, where the entry's name is another, e.g. sst2: {kind: classification}
    max_rejected_fraction: Fraction = 0.05  # of the records; beyond it the stage fails
    max_documents: Positive | None = None  # stop after so many records


class DocsSource(SourceBase):
    """The documentation inside the installed packages."""

    source: Literal["docs"]
    packages: list[str] | None = None  # None: the allow-list of `llm.data.docs`


class FilesSource(SourceBase):
    """Local files: paths or globs, relative to the repository."""

    source: Literal["files"]
    paths: Annotated[list[str], Field(min_length=1)]
    test_paths: list[str] = []  # the source's own held-out files; without them mix splits by hash
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "tsv", "squad", "alpaca"] = "auto"
    columns: dict[str, str] = {}  # our column name -> the file's
    labels: list[str] | dict[str, str] | None = None  # names of integer classes, in order, or value -> name


class HubSource(SourceBase):
    """A Hugging Face dataset, pinned to a revision."""

    source: Literal["hub"]
    id: str
    revision: Annotated[str, Field(min_length=7)]  # a commit hash: a branch would not be reproducible
    config: str | None = None
    split: str = "train"
    test_split: str | None = None
    columns: dict[str, str] = {}
    labels: list[str] | dict[str, str] | None = None
    max_bytes: Positive | None = None  # of text, streamed


Source = Annotated[DocsSource | FilesSource | HubSource, Field(discriminator="source")]


# -- the other stages -------------------------------------------------------------------------------------------------


class Tokenize(Section):
    tokenizer: Literal["bpe", "gpt2"]
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)]
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    shard_tokens: Annotated[int, Field(ge=1024)]


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
        """What `llm.model.config.Config` takes: all but the dial they may have come from."""
        return self.model_dump(exclude={"depth"})

    @model_validator(mode="after")
    def _divisible(self) -> Model:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_key_value_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) must be even: rotary positions turn pairs")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be divisible by "
                f"num_attention_heads ({self.num_attention_heads})"
            )
        if self.sliding_window is not None and self.qk_norm:
            raise ValueError("sliding_window and qk_norm together have no Hugging Face class; set one of them off")
        return self


class Training(Section):
    """What pretrain and finetune share: one engine trains both."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    batch_tokens: Positive
    sequence_length: Annotated[int, Field(ge=8)]
    optimizer: Literal["muon", "adamw"]
    learning_rate: Annotated[float, Field(gt=0)]
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
    tokens: Positive
    induction_init: bool
    attend_across_documents: bool

    @property
    def steps(self) -> int:
        """Optimizer steps, rounded up, at least one."""
        return max(1, -(-self.tokens // self.batch_tokens))


class MixTask(Section):
    weight: Annotated[float, Field(ge=0)]


class Mix(Section):
    tasks: Annotated[dict[str, MixTask], Field(min_length=1)]
    examples: Positive
    pretrain_fraction: Fraction
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    max_tokens: Annotated[int, Field(ge=32)]


class Lora(Section):
    r: Positive
    alpha: Annotated[float, Field(gt=0)]
    dropout: Fraction
    target_modules: Annotated[list[str], Field(min_length=1)]


class Finetune(Training):
    method: Literal["lora"]
    lora: Lora
    epochs: Annotated[float, Field(gt=0)]


class Decoding(Section):
    """How tokens are chosen, under transformers' names; a temperature of 0 takes the most likely one."""

    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_k: Positive | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(gt=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    num_beams: Positive = 1
    length_penalty: float = 1.0
    stop_strings: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    prompt_lookup_num_tokens: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _one_search(self) -> Decoding:
        if self.num_beams > 1 and (self.temperature or self.prompt_lookup_num_tokens):
            raise ValueError("num_beams above 1 goes with temperature 0 and prompt_lookup_num_tokens 0 only")
        if not self.temperature and (self.top_k or self.top_p or self.min_p):
            raise ValueError("top_k, top_p and min_p choose among tokens that are drawn: give a temperature above 0")
        return self

    def describe(self) -> str:
        """In a few words, for signatures; what does not change results is left out."""
        if self.num_beams > 1:
            how = f"beam search, {self.num_beams} beams, length penalty {self.length_penalty:g}"
        elif self.temperature:
            filters = [f"{name} {value:g}" for name in ("top_k", "top_p", "min_p") if (value := getattr(self, name))]
            how = ", ".join([f"sampled at temperature {self.temperature:g}", *filters])
        else:
            how = "greedy"
        if self.repetition_penalty != 1:
            how += f", repetition penalty {self.repetition_penalty:g}"
        return how + (f", stops at {' or '.join(map(repr, self.stop_strings))}" if self.stop_strings else "")


class Evaluate(Section):
    examples: Positive | None
    shots: Annotated[int, Field(ge=0)] = 0
    max_new_tokens: dict[str, Positive]
    decoding: Decoding = Decoding()
    variants: dict[str, Decoding] = {}
    variant_examples: Positive | None = 60
    perplexity_tokens: Positive | None
    bootstrap: Annotated[int, Field(ge=100)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)]


class Report(Section):
    samples: Positive
    data_examples: Positive


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    download: dict[str, Source]
    tokenize: Tokenize
    model: Model
    pretrain: Pretrain
    mix: Mix
    finetune: Finetune
    evaluate: Evaluate
    report: Report
    tracking: Tracking

    def seed_of(self, stage: Literal["pretrain", "finetune"]) -> int:
        """The stage's own seed, or the pipeline's."""
        own = (self.pretrain if stage == "pretrain" else self.finetune).seed
        return self.seed if own is None else own

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if "pretrain" not in self.download:
            raise ValueError("download.pretrain is missing: it names the text to pretrain on")
        for name in self.mix.tasks:
            if name not in self.download:
                raise ValueError(f"mix.tasks.{name} has no source: add download.{name}, or remove the task")
        for name in self.download:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"download.{name}: a dataset's name may hold letters, digits, '_' and '-' only")
            if name != "pretrain" and name not in self.mix.tasks:
                raise ValueError(f"download.{name} is not used: add it to mix.tasks{_nearest(name, self.mix.tasks)}")
        for stage in ("pretrain", "finetune"):
            length = getattr(self, stage).sequence_length
            if length > self.model.max_position_embeddings:
                raise ValueError(
                    f"{stage}.sequence_length ({length}) must be at most "
                    f"model.max_position_embeddings ({self.model.max_position_embeddings})"
                )
        if self.mix.max_tokens > self.finetune.sequence_length:
            raise ValueError(
                f"mix.max_tokens ({self.mix.max_tokens}) must be at most "
                f"finetune.sequence_length ({self.finetune.sequence_length})"
            )
        return self


def load(path: str | Path = "params.yaml") -> Params:
    """Read and check params.

    Raises:
        UserError: the file is missing or not YAML, or a key is unknown, missing or out of range; the message lists
            every such key with what was expected.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Run from the repository's root, or restore it with git.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected sections such as `model:` and `pretrain:`, found {type(data).__name__}.")
    return parse(data, str(path))


def parse(data: dict[str, Any], where: str = "params") -> Params:
    """Check params that are already read, `auto` replaced by what model.depth gives. Raises UserError like `load`."""
    data = scaling.resolve(data, where)
    try:
        return Params.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(error, data, where)) from None


def _explain(error: ValidationError, data: dict[str, Any], where: str) -> str:
    lines = []
    for item in error.errors():
        loc = [str(part) for part in item["loc"] if part not in ("docs", "files", "hub")] or ["params"]
        key, kind = ".".join(loc), item["type"]
        if kind == "extra_forbidden":
            lines.append(f"  {key}: unknown key{_nearest(loc[-1], _names_at(item['loc'], data))}")
        elif kind == "missing":
            lines.append(f"  {key}: missing")
        elif kind == "value_error":
            prefix = "" if loc == ["params"] else f"{key}: "
            lines.append(f"  {prefix}{item['ctx']['error']}")
        elif kind == "union_tag_invalid":
            given = item["ctx"]["tag"]
            lines.append(f"  {key}.source: {given!r} is unknown; expected docs, files or hub")
        elif kind == "union_tag_not_found":
            lines.append(f"  {key}.source: missing; expected docs, files or hub")
        else:
            lines.append(f"  {key}: {item['msg']}, found {item['input']!r}")
    return f"{where} has {len(lines)} impossible value{'s' * (len(lines) > 1)}:\n" + "\n".join(lines)


def _names_at(loc: tuple[Any, ...], data: dict[str, Any]) -> list[str]:
    """Valid names where an unknown key was found, for the suggestion."""
    if loc and loc[0] == "download" and len(loc) > 2:
        tag = data["download"][loc[1]].get("source")
        sources: dict[str, type[BaseModel]] = {"docs": DocsSource, "files": FilesSource, "hub": HubSource}
        return list(sources[tag].model_fields) if tag in sources else []
    node: Any = Params
    for part in loc[:-1]:
        field = node.model_fields.get(part) if isinstance(node, type) and issubclass(node, BaseModel) else None
        if field is None:
            return []
        node = field.annotation
    return list(node.model_fields) if isinstance(node, type) and issubclass(node, BaseModel) else []


def _nearest(name: str, names: Any) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else (f"; known: {', '.join(names)}" if names else "")

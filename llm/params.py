"""Typed `params.yaml`.

The file is the only source of truth. It is read once, at the boundary, into frozen models; a key that is unknown
or a value that is impossible is refused by name, with the nearest valid name, before any work starts.
"""

from __future__ import annotations

import codecs
import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
    """Local or remote files: paths, directories, globs and fsspec addresses; relative to the repository."""

    source: Literal["files"]
    paths: Annotated[list[str], Field(min_length=1)]
    test_paths: list[str] = []  # the source's own held-out files; without them mix splits by hash
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "tsv", "squad", "alpaca"] = "auto"
    columns: dict[str, str] = {}  # our column name -> the file's
    labels: list[str] | dict[str, str] | None = None  # names of integer classes, in order, or value -> name
    encoding: str = "auto"  # auto: UTF-8, or UTF-16 and UTF-32 by their byte order mark; else as Python calls it
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}  # path as found -> digest it must have
    licence: str | None = None  # of the files: goes into the manifest
    revision: str | None = None  # as their publisher calls it; the manifest has their digests too

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return value if value == "auto" else codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"{value!r} is no encoding that Python knows; such as utf-8, cp1252, utf-16-le") from None


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


SingleSource = Annotated[DocsSource | FilesSource | HubSource, Field(discriminator="source")]


class MixtureSource(SourceBase):
    """Several sources of pretraining text, by weight."""

    source: Literal["mixture"]
    sources: Annotated[dict[str, SingleSource], Field(min_length=2)]
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}  # share of the text, relative to the others; missing: 1
    max_repeats: Annotated[float, Field(ge=1.0, le=100.0)] = 1.0  # times that scarce text may be taken

    @model_validator(mode="after")
    def _named(self) -> MixtureSource:
        for name in self.sources:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"sources.{name}: a source's name may hold letters, digits, '_' and '-' only")
        for name in self.weights:
            if name not in self.sources:
                raise ValueError(f"weights.{name} is none of the sources{_nearest(name, list(self.sources))}")
        if self.max_documents is not None:
            raise ValueError("max_documents is set for each of a mixture's sources, not for the mixture")
        return self


Source = Annotated[DocsSource | FilesSource | HubSource | MixtureSource, Field(discriminator="source")]


# -- the other stages -------------------------------------------------------------------------------------------------


Share = Annotated[float, Field(gt=0.0, le=1.0)]
Grams = list[tuple[Positive, Share]]  # words of a gram, and the share of the characters from which it counts


class PersonalData(Section):
    """What is masked; a document is never removed for it."""

    email: bool = False
    phone: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    ip: bool = False


class GopherQuality(Section):
    """Document rules of Rae et al. 2021 (arXiv:2112.11446, A.1.1); None: the rule is off."""

    min_doc_words: Positive | None = None
    max_doc_words: Positive | None = None
    min_avg_word_length: Annotated[float, Field(gt=0)] | None = None
    max_avg_word_length: Annotated[float, Field(gt=0)] | None = None
    max_symbol_word_ratio: Annotated[float, Field(gt=0)] | None = None
    max_bullet_lines_ratio: Share | None = None
    max_ellipsis_lines_ratio: Share | None = None
    min_alpha_words_ratio: Share | None = None
    min_stop_words: Annotated[int, Field(ge=1, le=8)] | None = None


class GopherRepetition(Section):
    """Repetition within a document, ibid., table A1; None or []: the rule is off."""

    dup_line_frac: Share | None = None
    dup_para_frac: Share | None = None
    dup_line_char_frac: Share | None = None
    dup_para_char_frac: Share | None = None
    top_n_grams: Grams = []
    dup_n_grams: Grams = []


class C4(Section):
    """Line and document rules of Raffel et al. 2020 (arXiv:1910.10683, 2.2)."""

    filter_no_terminal_punct: bool = False
    min_words_per_line: Positive | None = None
    max_word_length: Positive | None = None
    filter_javascript: bool = False
    filter_policy: bool = False
    remove_citations: bool = False
    filter_lorem_ipsum: bool = False
    filter_curly_bracket: bool = False
    min_num_sentences: Positive | None = None


class NearDuplicates(Section):
    """MinHash-LSH (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3)."""

    threshold: Annotated[float, Field(ge=0.3, lt=1.0)] = 0.8
    num_perm: Annotated[int, Field(ge=16, le=1024)] = 128
    ngram: Annotated[int, Field(ge=1, le=32)] = 5


class Clean(Section):
    """What is taken out of the pretraining text, and how the rest is normalised; everything is off by default."""

    unicode: Literal["nfc", "ftfy"] | None = None
    whitespace: bool = False
    personal_data: PersonalData = PersonalData()
    min_characters: Positive | None = None
    max_characters: Positive | None = None
    languages: Annotated[list[Annotated[str, Field(pattern="^[a-z]{2,3}$")]], Field(min_length=1)] | None = None
    min_language_probability: Annotated[float, Field(ge=0.0, le=1.0)] = 0.65
    gopher_quality: GopherQuality = GopherQuality()
    gopher_repetition: GopherRepetition = GopherRepetition()
    c4: C4 = C4()
    decontaminate: bool = False
    exact_duplicates: bool = False
    near_duplicates: NearDuplicates | None = None
    duplicate_paragraphs: Positive | None = None

    @property
    def compares(self) -> bool:
        """Whether a rule compares documents with others, which takes a pass over all of them before the first."""
        return bool(self.decontaminate or self.exact_duplicates or self.near_duplicates or self.duplicate_paragraphs)

    @property
    def active(self) -> bool:
        """Whether any rule is on."""
        return self != Clean(min_language_probability=self.min_language_probability)


SCRATCH, TEXT, BASE = "data/tokenizer", "data/raw/pretrain", "models/base"  # defaults of the three paths below


class Checkpoint(Section):
    """A Hugging Face model to fetch, pinned to a commit."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]  # a branch would not be reproducible


class Tokenize(Section):
    tokenizer: Literal["bpe", "gpt2", "pretrained"]
    origin: str = TEXT  # pretrained: a model directory, whose tokenizer is taken

    @model_validator(mode="after")
    def _origin(self) -> Tokenize:
        if (self.tokenizer == "pretrained") != (self.origin != TEXT):
            raise ValueError(
                f"origin ({self.origin}) and tokenizer ({self.tokenizer}) do not go together: `pretrained` takes the "
                f"tokenizer of a Hugging Face model directory, all others leave origin at {TEXT}"
            )
        return self

    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)]
    val_fraction: Annotated[float, Field(gt=0.0, lt=1.0)]
    shard_tokens: Annotated[int, Field(ge=1024)]
    workers: Positive | None = None  # processes; None: one a core. Changes no byte
    encoder: Literal["auto", "words", "tiktoken"] = "auto"  # changes no byte either
    engine: Literal["local", "dask"] = "local"  # nor does this
    clean: Clean = Clean()


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
    init: Annotated[str, Field(min_length=1)] = SCRATCH
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
    rslora: bool = False


class PromptTuning(Section):
    num_virtual_tokens: Positive = 20


class Finetune(Training):
    base: Annotated[str, Field(min_length=1)] = BASE
    method: Literal["lora", "qlora", "full", "prompt_tuning"]
    lora: Lora
    prompt_tuning: PromptTuning = PromptTuning()
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


class Scaling(Section):
    """The ladder of llm/ladder.py."""

    depths: Annotated[list[Positive], Field(min_length=2)] = [1, 2, 3, 4]
    tokens: Annotated[list[Positive], Field(min_length=2)] = [200_000, 400_000, 800_000, 1_600_000]
    held_back_depth: Positive = 5
    bootstrap: Annotated[int, Field(ge=20)] = 400

    @model_validator(mode="after")
    def _larger(self) -> Scaling:
        if self.held_back_depth <= max(self.depths):
            raise ValueError(
                f"held_back_depth ({self.held_back_depth}) must be above all depths ({self.depths}): it is predicted"
            )
        return self


class Report(Section):
    samples: Positive
    data_examples: Positive


class Tracking(Section):
    experiment: Annotated[str, Field(min_length=1)]


class Params(Section):
    """The whole of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    checkpoints: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Checkpoint] = {}
    download: dict[str, Source]
    tokenize: Tokenize
    model: Model
    pretrain: Pretrain
    mix: Mix
    finetune: Finetune
    evaluate: Evaluate
    scaling: Scaling = Scaling()
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
        for name, source in self.download.items():
            if name != "pretrain" and source.source == "mixture":
                raise ValueError(
                    f"download.{name}.source: only pretrain can be a mixture; tasks are mixed by mix.tasks"
                )
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"download.{name}: a dataset's name may hold letters, digits, '_' and '-' only")
            if name != "pretrain" and name not in self.mix.tasks:
                raise ValueError(f"download.{name} is not used: add it to mix.tasks{_nearest(name, self.mix.tasks)}")
        clean, text = self.tokenize.clean, self.download["pretrain"]
        repeats = text.max_repeats if isinstance(text, MixtureSource) else 1.0
        if repeats > 1 and (clean.exact_duplicates or clean.near_duplicates or clean.duplicate_paragraphs):
            raise ValueError(
                "tokenize.clean's rules on duplicates would take out what download.pretrain.max_repeats puts in"
            )
        for stage in ("pretrain", "finetune"):
            length = getattr(self, stage).sequence_length
            if self.pretrain.init != SCRATCH or (stage == "finetune" and self.finetune.base != BASE):
                continue  # the checkpoint's own limit holds, which the stage looks at
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


TAGS: dict[str, type[BaseModel]] = {
    "docs": DocsSource,
    "files": FilesSource,
    "hub": HubSource,
    "mixture": MixtureSource,
}


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
        loc = [str(part) for part in item["loc"] if part not in TAGS] or ["params"]
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
            lines.append(f"  {key}.source: {given!r} is unknown; expected docs, files, hub or mixture")
        elif kind == "union_tag_not_found":
            lines.append(f"  {key}.source: missing; expected docs, files, hub or mixture")
        else:
            lines.append(f"  {key}: {item['msg']}, found {item['input']!r}")
    return f"{where} has {len(lines)} impossible value{'s' * (len(lines) > 1)}:\n" + "\n".join(lines)


def _names_at(loc: tuple[Any, ...], data: dict[str, Any]) -> list[str]:
    """Valid names where an unknown key was found, for the suggestion."""
    if loc and loc[0] == "download" and len(loc) > 2:
        tag = data["download"][loc[1]].get("source")
        if tag == "mixture" and len(loc) > 5:  # download, name, mixture, sources, its name, …
            tag = data["download"][loc[1]]["sources"][loc[4]].get("source")
        return list(TAGS[tag].model_fields) if tag in TAGS else []
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

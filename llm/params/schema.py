"""The root of `params.yaml`, and its short sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm.params.align import Align
from llm.params.clean import Clean
from llm.params.download import MixtureSource, Source
from llm.params.evaluate import Evaluate
from llm.params.section import Fraction, Positive, Section, nearest
from llm.params.training import BASE, SCRATCH, Finetune, Model, Pretrain

# The value of tokenize.origin for "no checkpoint: train a tokenizer on this text".
TEXT = "data/raw/pretrain"


class Checkpoint(Section):
    """A Hugging Face model to fetch, pinned to a commit."""

    id: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]  # a branch would not be reproducible


class Tokenize(Section):
    tokenizer: Literal["bpe", "gpt2", "pretrained"]
    origin: str = TEXT  # pretrained: the model directory that has the tokenizer

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
    workers: Positive | None = None  # processes; None: one for each core. No effect on the output
    task_examples: dict[str, Positive] = {}  # by task
    encoder: Literal["auto", "words", "tiktoken"] = "auto"  # no effect on the output
    engine: Literal["local", "dask"] = "local"  # no effect on the output
    clean: Clean = Clean()


class MixTask(Section):
    weight: Annotated[float, Field(ge=0)]


class Mix(Section):
    tasks: Annotated[dict[str, MixTask], Field(min_length=1)]
    examples: Positive
    pretrain_fraction: Fraction
    val_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    test_fraction: Annotated[float, Field(gt=0, lt=0.5)]
    max_tokens: Annotated[int, Field(ge=32)]


class Scaling(Section):
    """Sizes and tokens of the models that the scaling law is fitted to."""

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
    """The content of `params.yaml`."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    checkpoints: dict[Annotated[str, Field(pattern=r"^[\w-]+$")], Checkpoint] = {}
    download: dict[str, Source]
    tokenize: Tokenize
    model: Model
    pretrain: Pretrain
    mix: Mix
    finetune: Finetune
    align: Align | None = None
    evaluate: Evaluate
    scaling: Scaling = Scaling()
    report: Report
    tracking: Tracking

    def seed_of(self, stage: Literal["pretrain", "finetune"]) -> int:
        """Return the stage's own seed, or the pipeline's."""
        own = (self.pretrain if stage == "pretrain" else self.finetune).seed
        return self.seed if own is None else own

    @model_validator(mode="after")
    def _consistent(self) -> Params:
        if "pretrain" not in self.download:
            raise ValueError("download.pretrain is missing: it names the text to pretrain on")
        for name in self.mix.tasks:
            if name not in self.download:
                raise ValueError(
                    f"mix.tasks.{name} has no source: add download.{name}, or remove the task"
                )
        for name, source in self.download.items():
            if name != "pretrain" and source.source == "mixture":
                raise ValueError(
                    f"download.{name}.source: only pretrain can be a mixture; tasks are mixed by mix.tasks"
                )
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"download.{name}: a dataset's name may hold letters, digits, '_' and '-' only"
                )
            if name != "pretrain" and name not in self.mix.tasks:
                raise ValueError(
                    f"download.{name} is not used: add it to mix.tasks{nearest(name, self.mix.tasks)}"
                )
        for name in self.tokenize.task_examples:
            if name not in self.mix.tasks:
                raise ValueError(
                    f"tokenize.task_examples.{name}: mix.tasks has no such task{nearest(name, self.mix.tasks)}"
                )
        clean, text = self.tokenize.clean, self.download["pretrain"]
        repeats = text.max_repeats if isinstance(text, MixtureSource) else 1.0
        if repeats > 1 and (
            clean.exact_duplicates or clean.near_duplicates or clean.duplicate_paragraphs
        ):
            raise ValueError(
                "tokenize.clean's rules on duplicates would remove what download.pretrain.max_repeats repeats"
            )
        for stage in ("pretrain", "finetune"):
            length = getattr(self, stage).sequence_length
            if self.pretrain.init != SCRATCH or (
                stage == "finetune" and self.finetune.base != BASE
            ):
                continue  # the stage checks the checkpoint's own limit
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

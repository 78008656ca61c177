"""`download`: the sources of pretraining text and of each task's records."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llm.params.section import Fraction, Positive, Section, nearest


class SourceBase(Section):
    # Kind of task, if the entry has another name, e.g. sst2: {kind: classification}.
    kind: str | None = None
    max_rejected_fraction: Fraction = 0.05  # of the records; the stage fails above it
    max_documents: Positive | None = None  # stop after so many records


class DocsSource(SourceBase):
    """The documentation in the installed packages."""

    source: Literal["docs"]
    packages: list[str] | None = None  # None: the allow-list of `llm.sources.docs.source`


class FilesSource(SourceBase):
    """Local or remote files: paths (relative to the repository), globs and fsspec addresses."""

    source: Literal["files"]
    paths: Annotated[list[str], Field(min_length=1)]
    test_paths: list[str] = []  # the source's own test files; without them mix splits by hash
    val_paths: list[str] = []  # its own validation files, likewise
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "tsv", "squad", "alpaca"] = "auto"
    columns: dict[str, str] = {}  # our column name -> the file's
    # False: the first line of a CSV or TSV is a record, and columns are named 0, 1, …
    header: bool = True
    # Names of integer classes, in order, or value -> name.
    labels: list[str] | dict[str, str] | None = None
    # auto: UTF-8, or UTF-16 and UTF-32 by their byte order mark; else one of Python's names.
    encoding: str = "auto"
    # Path -> digest that the file must have.
    sha256: dict[str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = {}
    licence: str | None = None  # of the files, for the manifest
    revision: str | None = None  # the publisher's name for it, for the manifest

    @property
    def all_paths(self) -> list[str]:
        """All paths, in the order in which they are read."""
        return [*self.paths, *self.val_paths, *self.test_paths]

    @field_validator("columns", mode="before")
    @classmethod
    def _positions(cls, value: Any) -> Any:
        """Accept positions of columns as numbers."""
        if not isinstance(value, dict):
            return value
        return {key: str(item) if type(item) is int else item for key, item in value.items()}

    @field_validator("encoding")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            return value if value == "auto" else codecs.lookup(value).name
        except LookupError:
            raise ValueError(
                f"{value!r} is not an encoding that Python knows, such as utf-8, cp1252, utf-16-le"
            ) from None


class HubSource(SourceBase):
    """A Hugging Face dataset, pinned to a revision."""

    source: Literal["hub"]
    id: str
    # A commit hash: a branch would not be reproducible.
    revision: Annotated[str, Field(min_length=7)]
    config: str | None = None
    split: str = "train"
    test_split: str | None = None
    val_split: str | None = None
    columns: dict[str, str] = {}
    labels: list[str] | dict[str, str] | None = None
    max_bytes: Positive | None = None  # of text, streamed


SingleSource = Annotated[DocsSource | FilesSource | HubSource, Field(discriminator="source")]


class MixtureSource(SourceBase):
    """Several sources of pretraining text, by weight."""

    source: Literal["mixture"]
    sources: Annotated[dict[str, SingleSource], Field(min_length=2)]
    # Share of the text, relative to the others; 1 if it is not given.
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}
    # How often scarce text may be repeated.
    max_repeats: Annotated[float, Field(ge=1.0, le=100.0)] = 1.0

    @model_validator(mode="after")
    def _named(self) -> MixtureSource:
        for name in self.sources:
            if not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(
                    f"sources.{name}: a source's name may hold letters, digits, '_' and '-' only"
                )
        for name in self.weights:
            if name not in self.sources:
                raise ValueError(
                    f"weights.{name} is not one of the sources{nearest(name, list(self.sources))}"
                )
        if self.max_documents is not None:
            raise ValueError(
                "max_documents is set for each of a mixture's sources, not for the mixture"
            )
        return self


Source = Annotated[
    DocsSource | FilesSource | HubSource | MixtureSource, Field(discriminator="source")
]

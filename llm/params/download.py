"""`download`: where pretraining text and the records of each task come from."""

from __future__ import annotations

import codecs
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from llm.params.section import Fraction, Positive, Section, nearest


class SourceBase(Section):
    kind: str | None = (
        None  # of task, where the entry's name is another, e.g. sst2: {kind: classification}
    )
    max_rejected_fraction: Fraction = 0.05  # of the records; beyond it the stage fails
    max_documents: Positive | None = None  # stop after so many records


class DocsSource(SourceBase):
    """The documentation inside the installed packages."""

    source: Literal["docs"]
    packages: list[str] | None = None  # None: the allow-list of `llm.sources.docs.source`


class FilesSource(SourceBase):
    """Local or remote files: paths, directories, globs and fsspec addresses; relative to the
    repository.
    """

    source: Literal["files"]
    paths: Annotated[list[str], Field(min_length=1)]
    test_paths: list[str] = []  # the source's own held-out files; without them mix splits by hash
    val_paths: list[str] = []  # those it validates on; the same
    format: Literal["auto", "text", "jsonl", "parquet", "csv", "tsv", "squad", "alpaca"] = "auto"
    columns: dict[str, str] = {}  # our column name -> the file's
    header: bool = (
        True  # false: the first line of a CSV or TSV is a record, and columns are named 0, 1, …
    )
    labels: list[str] | dict[str, str] | None = (
        None  # names of integer classes, in order, or value -> name
    )
    # auto: UTF-8, or UTF-16 and UTF-32 by their byte order mark; else as Python calls it
    encoding: str = "auto"
    sha256: dict[
        str, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    ] = {}  # path as found -> digest it must have
    licence: str | None = None  # of the files: goes into the manifest
    revision: str | None = None  # as their publisher calls it; the manifest has their digests too

    @property
    def all_paths(self) -> list[str]:
        """All that is read, in its order."""
        return [*self.paths, *self.val_paths, *self.test_paths]

    @field_validator("columns", mode="before")
    @classmethod
    def _positions(cls, value: Any) -> Any:
        """Positions may be numbers."""
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
                f"{value!r} is no encoding that Python knows; such as utf-8, cp1252, utf-16-le"
            ) from None


class HubSource(SourceBase):
    """A Hugging Face dataset, pinned to a revision."""

    source: Literal["hub"]
    id: str
    revision: Annotated[
        str, Field(min_length=7)
    ]  # a commit hash: a branch would not be reproducible
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
    weights: dict[
        str, Annotated[float, Field(gt=0)]
    ] = {}  # share of the text, relative to the others; missing: 1
    max_repeats: Annotated[float, Field(ge=1.0, le=100.0)] = (
        1.0  # times that scarce text may be taken
    )

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
                    f"weights.{name} is none of the sources{nearest(name, list(self.sources))}"
                )
        if self.max_documents is not None:
            raise ValueError(
                "max_documents is set for each of a mixture's sources, not for the mixture"
            )
        return self


Source = Annotated[
    DocsSource | FilesSource | HubSource | MixtureSource, Field(discriminator="source")
]

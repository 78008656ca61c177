"""Typed `params.yaml`: `load()` gives a `Params`.

The file is read once, at the boundary, into frozen models; each module here has one section or a
few. An unknown key or an invalid value is refused by name, with the nearest valid name, before any
work starts.
"""

from llm.params.clean import (
    C4,
    Clean,
    GopherQuality,
    GopherRepetition,
    NearDuplicates,
    PersonalData,
)
from llm.params.download import (
    DocsSource,
    FilesSource,
    HubSource,
    MixtureSource,
    SingleSource,
    Source,
)
from llm.params.evaluate import Decoding, Evaluate
from llm.params.read import load, parse
from llm.params.schema import Checkpoint, Mix, MixTask, Params, Scaling, Tokenize
from llm.params.section import Section
from llm.params.training import (
    BASE,
    SCRATCH,
    Finetune,
    Lora,
    Model,
    Pretrain,
    PromptTuning,
    Training,
)

__all__ = [
    "BASE",
    "C4",
    "SCRATCH",
    "Checkpoint",
    "Clean",
    "Decoding",
    "DocsSource",
    "Evaluate",
    "FilesSource",
    "Finetune",
    "GopherQuality",
    "GopherRepetition",
    "HubSource",
    "Lora",
    "Mix",
    "MixTask",
    "MixtureSource",
    "Model",
    "NearDuplicates",
    "Params",
    "PersonalData",
    "Pretrain",
    "PromptTuning",
    "Scaling",
    "Section",
    "SingleSource",
    "Source",
    "Tokenize",
    "Training",
    "load",
    "parse",
]

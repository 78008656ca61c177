"""Typed `params.yaml`: `load()` gives a `Params`.

The file is read once, at the boundary, into frozen models; each module here has one section or a
few. An unknown key or an invalid value is refused by name, with the nearest valid name, before any
work starts.
"""

from llm.params.clean import Clean
from llm.params.download import DocsSource, FilesSource, HubSource, MixtureSource, Source
from llm.params.evaluate import Decoding
from llm.params.read import load, parse
from llm.params.schema import Mix, Params, Tokenize
from llm.params.section import Section
from llm.params.training import BASE, SCRATCH, Finetune, Training

__all__ = [
    "BASE",
    "SCRATCH",
    "Clean",
    "Decoding",
    "DocsSource",
    "FilesSource",
    "Finetune",
    "HubSource",
    "Mix",
    "MixtureSource",
    "Params",
    "Section",
    "Source",
    "Tokenize",
    "Training",
    "load",
    "parse",
]

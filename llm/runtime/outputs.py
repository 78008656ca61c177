"""The directories that stages write, and the names of the files that they write there.

`llm.runtime.io.whole_directory` does not replace a directory that contains any other file. DVC
deletes the outputs of a stage before it runs the stage, whatever they contain; so `make repro`
calls `refuse_others` first.
"""

from __future__ import annotations

from pathlib import Path

from llm.runtime.io import refuse_other_files

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "ranks.tiktoken",
    "chat_template.jinja",
    "special_tokens_map.json",
)
ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "base.json", "NONE.txt")
MODEL = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    *TOKENIZER,
    *(f"prompt/{n}" for n in ADAPTER),
)
RAW = ("*/manifest.json", "*/part-*.parquet")
TOKENS = ("meta.json", "*.npy", "clean/*.npy")
MIX = ("*.parquet", "test/*.parquet", "all/*.parquet")
PREDICTIONS = ("*.parquet",)
PREFERENCES = ("*.parquet", "manifest.json")
ALIGNED_SCORES = ("*.parquet", "*.json")
REPORT = ("report.*", "figures/*", "numbers/*", "tables/*")

WRITTEN = {
    "data/raw": RAW,
    "data/tokenizer": TOKENIZER,
    "data/tokens": TOKENS,
    "data/mix": MIX,
    "models/base": MODEL,
    "models/adapter": ADAPTER,
    "models/finetuned": MODEL,
    "metrics/predictions": PREDICTIONS,
    "metrics/report": REPORT,
    "data/preferences": PREFERENCES,
    "models/aligned_adapter": ADAPTER,
    "models/aligned": MODEL,
    "metrics/aligned": ALIGNED_SCORES,
}


def refuse_others() -> None:
    """Raise UserError for a file in an output directory that no stage writes."""
    for path, files in WRITTEN.items():
        refuse_other_files(Path(path), files)

"""Models from the Hugging Face hub at a pinned commit: config, safetensors and tokenizer only."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llm.errors import NO_SPACE, UserError, first_line
from llm.runtime.io import whole_directory
from llm.sources.hub import check_reachable

# Named files only: no code, no pickles, no copies of the weights in other formats.
PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "LICENSE*",
    "README.md",
)


def fetch(model_id: str, revision: str, directory: Path) -> int:
    """Download a model into `directory`, completely or not at all, and return its bytes.

    Raises:
        UserError: the hub cannot be reached or has no such model or commit, or the model is in no
            usable format.
    """
    where = f"checkpoints: {model_id} at {revision[:12]}"
    check_reachable(where)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    with whole_directory(directory, PATTERNS) as folder:
        try:
            snapshot_download(
                model_id, revision=revision, local_dir=folder, allow_patterns=list(PATTERNS)
            )
        except Exception as error:  # from the hub's client, or from its HTTP library
            if isinstance(error, OSError) and error.errno in NO_SPACE:
                raise
            raise UserError(
                f"{where}: cannot be fetched ({first_line(error)}). Check the id and "
                "the commit; a model behind a licence needs HF_TOKEN in the environment."
            ) from None
        # The client's cache holds times, which DVC would hash.
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        if not (folder / "config.json").exists() or not list(folder.glob("*.safetensors")):
            raise UserError(
                f"{where}: it has no config.json and *.safetensors; pickled weights are not fetched."
            )
        return sum(path.stat().st_size for path in folder.iterdir())

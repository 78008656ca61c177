"""The model in the forms that other tools take, each in a directory with a model card and the tokenizer's files."""

from __future__ import annotations

import shutil
from pathlib import Path

from llm.errors import UserError
from llm.export.card import write_card
from llm.io import whole_directory


def export(to: str, model: Path, out: Path, dtype: str = "f16", adapter: Path | None = None) -> Path:
    """Write `model` (with `adapter` merged) into the directory `out`; returns it.

    to: hf: the Hugging Face directory itself | gguf: one file for llama.cpp and Ollama | pt: a plain state dict.
    dtype: of a gguf file's matrices, f32 | f16 | q8_0.

    Raises:
        UserError: the model is unusable or has no place in that form; a package is missing; `out` holds other files.
    """
    from llm.model.files import PROMPT, TOKENIZER_FILES, load_config, load_model
    from llm.model.lora import load_adapter, merge_lora

    if out.resolve() == model.resolve():
        raise UserError(f"--out {out} is the model itself; name another directory.")
    if out.exists() and any(out.iterdir()) and not (out / "README.md").exists():
        raise UserError(f"{out} holds files that are no export; name another directory with --out.")
    loaded = load_model(model, keep_stored=True)
    if adapter is not None:
        load_adapter(loaded, adapter, model)
        merge_lora(loaded)
    if loaded.soft_prompt is not None and to != "hf":
        raise UserError(f"{adapter or model} has a soft prompt, which a {to} file has no place for; use --to hf.")
    with whole_directory(out) as folder:
        if to == "gguf":
            from llm.export.gguf_file import write_gguf

            write_gguf(loaded, model, folder / f"{out.name}-{dtype}.gguf", dtype)
        elif to == "pt":
            _write_state_dict(loaded, folder / "model.pt")
            shutil.copyfile(model / "config.json", folder / "config.json")
        elif adapter is None:
            _copy(model, folder)
        else:
            from llm.data.tokenizer import Tokenizer
            from llm.model.files import save_model

            save_model(loaded, folder, model, Tokenizer.load(model).eos_id)
        for name in TOKENIZER_FILES:
            if (model / name).exists() and not (folder / name).exists():
                shutil.copyfile(model / name, folder / name)
        assert to != "hf" or loaded.soft_prompt is None or (folder / PROMPT).is_dir()
        write_card(folder, out.name, model, load_config(model), adapter)
    return out


def _copy(model: Path, folder: Path) -> None:
    """All files of a model directory but its card. No links: what lies in DVC's cache must not be changed from here."""
    shutil.copytree(model, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))


def _write_state_dict(model: object, path: Path) -> None:
    """A state dict that `torch.load(..., weights_only=True)` reads; checked by doing so."""
    import torch

    from llm.model.transformer import Transformer

    assert isinstance(model, Transformer)
    tensors = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    with open(path, "wb") as file:  # to a file object: else the file's name would be in its bytes
        torch.save(tensors, file)
    again = torch.load(path, weights_only=True, mmap=True)
    for name, value in tensors.items():
        if not torch.equal(again[name], value):
            raise UserError(f"{path}: {name} did not come back as it was written; is the disk in order?")

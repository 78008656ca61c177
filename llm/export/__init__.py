"""Export of the model for other tools, with a model card and the tokenizer's files."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from llm.errors import UserError
from llm.export.card import write_card
from llm.export.marker import MARKER, replaceable, write_marker
from llm.runtime.io import read_json, whole_directory, write_json


def export(
    to: str, model: Path, out: Path, dtype: str = "f16", adapter: Path | None = None
) -> Path:
    """Write `model` (with `adapter` merged) into the directory `out`; returns it.

    to: hf: the Hugging Face directory itself | gguf: one file for llama.cpp and Ollama | pt: a
        plain state dict.
    dtype: of a gguf file's matrices, f32 | f16 | q8_0.

    Raises:
        UserError: the model is unusable or has no place in that form; a package is missing; `out`
            holds other files than those of an earlier export of the same.
    """
    from llm.model.adapted_linear import merge_adapter
    from llm.model.adapters import load_adapter
    from llm.model.hf_files import PROMPT, TOKENIZER_FILES, load_config, load_model

    if out.resolve() == model.resolve():
        raise UserError(f"--out {out} is the model itself; name another directory.")
    title = out.resolve().name
    description = {"to": to, "model": model.as_posix()}
    description |= {"dtype": dtype} if to == "gguf" else {}
    description |= {"adapter": adapter.as_posix()} if adapter else {}
    replaced = replaceable(out, description)
    loaded = load_model(model, keep_stored=True)
    if adapter is not None:
        load_adapter(loaded, adapter, model)
        merge_adapter(loaded)
    if loaded.soft_prompt is not None and to != "hf":
        raise UserError(
            f"{adapter or model} has a soft prompt, which a {to} file has no place for; use --to hf."
        )
    with whole_directory(out.resolve(), replaced) as folder:
        if to == "gguf":
            from llm.export.gguf_file import write_gguf
            from llm.export.ollama import write_modelfile

            file = folder / f"{title.removesuffix(f'-{dtype}')}-{dtype}.gguf"
            write_gguf(loaded, model, file, dtype)
            write_modelfile(file, model, loaded.config.max_position_embeddings)
        elif to == "pt":
            _write_state_dict(loaded, folder / "model.pt")
            shutil.copyfile(model / "config.json", folder / "config.json")
        elif adapter is None:
            _copy(model, folder)
        else:
            from llm.model.hf_files import save_model
            from llm.tokenizer.bpe import Tokenizer

            save_model(loaded, folder, model, Tokenizer.load(model).eos_id)
        for name in TOKENIZER_FILES:
            if (model / name).exists() and not (folder / name).exists():
                shutil.copyfile(model / name, folder / name)
        _limit_length(folder / "tokenizer_config.json", loaded.config.max_position_embeddings)
        assert to != "hf" or loaded.soft_prompt is None or (folder / PROMPT).is_dir()
        write_card(folder, title, model, load_config(model), adapter, to)
        write_marker(folder, description)
    return out


def default_directory(to: str, model: Path, dtype: str, adapter: Path | None) -> Path:
    """The directory of an export that is given none: another one for each form, type, model and
    adapter by name.
    """
    parts = [
        model.name,
        *([adapter.name] if adapter else []),
        to,
        *([dtype] if to == "gguf" else []),
    ]
    return Path("exports", "-".join(parts))


def commands(to: str, out: Path) -> list[str]:
    """Return the shell commands that take an export elsewhere."""
    name = out.resolve().name
    lines = [f"hf upload YOUR_NAME/{name} {shlex.quote(out.as_posix())}"]
    if to == "gguf":
        modelfile = shlex.quote((out / "Modelfile").as_posix())
        lines.append(f"ollama create {name.lower()} -f {modelfile}")
    return lines


def _limit_length(path: Path, context: int) -> None:
    """Let the tokenizer of a model cut texts at the model's context; alone, it knows of no limit."""
    if path.exists():
        config = read_json(path)
        if not config.get("model_max_length") or config["model_max_length"] > context:
            write_json(path, {**config, "model_max_length": context})


def _copy(model: Path, folder: Path) -> None:
    """All files of a model directory but its card. No links: what lies in DVC's cache must not be
    changed from here.
    """
    shutil.copytree(
        model,
        folder,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("README.md", MARKER, ".git"),
    )


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
            raise UserError(
                f"{path}: {name} did not come back as it was written; is the disk in order?"
            )

"""The methods of `finetune.method`: the weights they train and the files they write.

Each writes an adapter in PEFT's files, and a whole model.

    lora           low-rank updates beside the layers' matrices           llm/model/lora.py
    qlora          the same beside matrices in 4 bits                     llm/model/quantized.py
    dora           the same, and a length for each row of the matrices    llm/model/dora.py
    ia3            scales of keys, values and the MLP's activations       llm/model/ia3.py
    full           every weight
    prompt_tuning  vectors in front of every prompt                       llm/model/soft_prompt.py

Frozen weights stay in the type of the checkpoint, trained ones are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from llm.errors import UserError
from llm.model.adapted_linear import merge_adapter
from llm.model.adapter_files import write_base
from llm.model.adapters import load_adapter
from llm.model.config import Config
from llm.model.dora import add_dora
from llm.model.hf_files import PROMPT, load_config, load_model, model_to_shard, save_model
from llm.model.ia3 import add_ia3, save_ia3
from llm.model.lora import add_lora, draw_lora
from llm.model.lora_files import save_lora
from llm.model.quantized import require_bitsandbytes
from llm.model.soft_prompt import add_prompt, save_prompt
from llm.model.transformer import Transformer
from llm.params import Finetune
from llm.runtime import outputs
from llm.runtime.io import whole_directory, write_bytes
from llm.tokenizer.bpe import Tokenizer
from llm.train import fsdp
from llm.train.adapter_size import adapter_size

NO_ADAPTER = (
    b"finetune.method is `full`: every weight was trained, and models/finetuned holds them.\n"
)


def prepare(s: Finetune, tokenizer: Tokenizer, seed: int) -> Transformer:
    """The base with what the method trains, in training mode; a soft prompt's ids go to the
    tokenizer.

    Raises:
        UserError: the base is unusable, or does not go with the tokenizer or the params.
    """
    base = Path(s.base)
    check(tokenizer, load_config(base), base, s.sequence_length, "finetune")
    keep_stored, lora = s.method != "full", s.lora
    if _sharded(s, base):
        model = model_to_shard(base, keep_stored)
    else:
        model = load_model(base, keep_stored=keep_stored, quantize=s.method == "qlora")
    if s.method in ("lora", "qlora", "dora"):
        add = add_dora if s.method == "dora" else add_lora
        add(model, lora.r, lora.alpha, lora.dropout, lora.target_modules, seed, lora.rslora)
        if model.fill is not None:
            model.fill = _both(model.fill, partial(draw_lora, model, seed))
    elif s.method == "ia3":
        add_ia3(model)
    elif s.method == "prompt_tuning":
        tokenizer.prefix = add_prompt(model, s.prompt_tuning.num_virtual_tokens, seed)
    return model.train()


def _sharded(s: Finetune, base: Path) -> bool:
    config = load_config(base)
    refused = f"finetune.method={s.method}" if s.method not in ("full", "lora") else ""
    if (base / PROMPT).is_dir():
        refused = f"{base}, which has a soft prompt,"
    return fsdp.wanted(config, s, adapter_size(config, s), refused)


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        first()
        second()

    return run


def check(
    tokenizer: Tokenizer, config: Config, directory: Path, sequence_length: int, stage: str
) -> None:
    """UserError where a checkpoint's vocabulary or context is too small for what is to be done with
    it.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{directory}: its tokenizer has ids up to {tokenizer.vocab_size - 1:,}, but config.json says vocab_size = "
            f"{config.vocab_size:,}: they are not of the same model."
        )
    if sequence_length > config.max_position_embeddings:
        raise UserError(
            f"{stage}.sequence_length ({sequence_length}) must be at most max_position_embeddings of {directory} "
            f"({config.max_position_embeddings})."
        )


def versions(s: Finetune) -> dict[str, str]:
    """Return the versions of the libraries, beside torch, that decide what is computed."""
    return {"bitsandbytes": require_bitsandbytes()} if s.method == "qlora" else {}


def write(
    model: Transformer,
    s: Finetune,
    tokenizer: Tokenizer,
    digests: dict[str, Any],
    adapter: Path,
    finetuned: Path,
) -> None:
    """Write the adapter, and the model that has it merged (a soft prompt: beside it).

    The adapter of a base in 4 bits is merged into the base's original weights.
    """
    base = Path(s.base)
    with whole_directory(adapter, outputs.ADAPTER) as directory:
        if s.method in ("lora", "qlora", "dora"):
            save_lora(model, directory, s.lora.model_dump(), base=s.base)
        elif s.method == "ia3":
            save_ia3(model, directory, base=s.base)
        elif s.method == "prompt_tuning":
            save_prompt(model, directory, base=s.base)
        if s.method == "full":
            write_bytes(directory / "NONE.txt", NO_ADAPTER)
        else:
            write_base(directory, digests)
    if s.method == "qlora":
        model = load_model(base, keep_stored=True)
        load_adapter(model, adapter)
    merge_adapter(model)
    with whole_directory(finetuned, outputs.MODEL) as directory:
        save_model(model, directory, base, tokenizer.eos_id)
        if not (directory / "ranks.tiktoken").exists():
            tokenizer.save(directory)  # with the chat template that it was finetuned with

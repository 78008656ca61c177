"""The model that pretraining starts from: weights from the seed, or those of a checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from llm.data.shards import check_tokenizer
from llm.model.config import Config
from llm.model.hf_files import digests, load_config, load_model, model_to_shard
from llm.model.induction import seed_induction
from llm.model.sharded_tensor import fill, whole
from llm.model.transformer import Transformer
from llm.params import Params
from llm.tokenizer.bpe import Tokenizer
from llm.train import fsdp
from llm.train.finetune_methods import check


def initial_model(
    p: Params, tokenizer: Tokenizer, tokens: Path
) -> tuple[Transformer, dict[str, Any]]:
    """The model to train, and digests of the checkpoint that it comes from (none from scratch).

    `pretrain.init` is a directory: with a tokenizer alone, or with a whole model, whose shape
        replaces params `model`.

    Raises:
        UserError: the checkpoint is unusable, or `tokens` were made with another tokenizer than its
            own.
    """
    init = Path(p.pretrain.init)
    check_tokenizer(tokens, init, "pretrain")
    if not (init / "config.json").exists():
        config = Config(vocab_size=tokenizer.vocab_size, **p.model.dimensions())
        seed, induction = p.seed_of("pretrain"), p.pretrain.induction_init
        if fsdp.wanted(config, p.pretrain):
            return new_model_to_shard(config, seed, induction), {}
        model = Transformer(config)
        model.initialize(seed)
        if induction:
            seed_induction(model, seed)
        return model, {}
    check(tokenizer, load_config(init), init, p.pretrain.sequence_length, "pretrain")
    sharded = fsdp.wanted(load_config(init), p.pretrain)
    model = model_to_shard(init) if sharded else load_model(init)
    return model.train(), {"init": digests(init)}


def new_model_to_shard(config: Config, seed: int, induction: bool) -> Transformer:
    """A model on the meta device, whose `fill` draws once it is sharded what one process draws.

    Each process draws every matrix, one at a time, and keeps its rows. The circuit lies in the
    embeddings, the first two layers and the output projection, which are put together for it.
    """
    with torch.device("meta"):
        model, start = (
            Transformer(config),
            Transformer(replace(config, num_hidden_layers=min(2, config.num_hidden_layers))),
        )

    def draw() -> None:
        model.initialize(seed)
        if not induction:
            return
        names = [name for name, _ in start.named_parameters()]
        values = {name: whole(model.get_parameter(name).detach()).cpu() for name in names}
        start.load_state_dict(values, strict=False, assign=True)
        seed_induction(start, seed)
        for name in names:
            fill(model.get_parameter(name), start.get_parameter(name))

    model.fill = draw
    return model

"""What pretraining begins with: weights from the seed, or those of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm.data.shards import check_tokenizer
from llm.data.tokenizer import Tokenizer
from llm.model.config import Config
from llm.model.files import digests, load_config, load_model
from llm.model.induction import seed_induction
from llm.model.transformer import Transformer
from llm.params import Params
from llm.train.methods import check


def initial_model(p: Params, tokenizer: Tokenizer, tokens: Path) -> tuple[Transformer, dict[str, Any]]:
    """The model to train, and digests of the checkpoint that it comes from (none from scratch).

    `pretrain.init` is a directory: with a tokenizer alone, or with a whole model, whose shape replaces params `model`.

    Raises:
        UserError: the checkpoint is unusable, or `tokens` were made with another tokenizer than its own.
    """
    init = Path(p.pretrain.init)
    check_tokenizer(tokens, init, "pretrain")
    if not (init / "config.json").exists():
        model = Transformer(Config(vocab_size=tokenizer.vocab_size, **p.model.dimensions()))
        seed = p.seed_of("pretrain")
        model.initialize(seed)
        if p.pretrain.induction_init:
            seed_induction(model, seed)
        return model, {}
    check(tokenizer, load_config(init), init, p.pretrain.sequence_length, "pretrain")
    return load_model(init).train(), {"init": digests(init)}

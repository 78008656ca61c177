"""A pretraining run: its data, its model, and the state that it can resume from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llm.data.batches import Dataset
from llm.data.shards import TokenStream
from llm.data.windows import TokenWindows
from llm.params import Params
from llm.runtime.io import sha256
from llm.tokenizer.bpe import Tokenizer
from llm.train.checkpoint import open_state
from llm.train.checkpoint.local import code_version
from llm.train.initial_model import initial_model
from llm.train.trainer import Result, Trainer
from llm.train.training_log import Tracker


class Pretraining:
    """The run that the params `pretrain` describe, on the token shards of one folder."""

    def __init__(self, params: Params, tokens: Path, name: str = "pretrain") -> None:
        """Make the model and name the state.

        Args:
            tokens: folder with the shards and their meta.json.
            name: of the run, in messages and in the state's path.

        Raises:
            UserError: shards, tokenizer or checkpoint are missing, broken or do not fit together.
        """
        s = params.pretrain
        self.params = params
        self.tokenizer = Tokenizer.load(Path(s.init))
        self.val = TokenStream(tokens, "val")
        self.train_set = self.windows(TokenStream(tokens, "train"))
        self.model, init_digests = initial_model(params, self.tokenizer, tokens)
        self.settings = s
        if init_digests:  # the multiplier is for new embeddings, which have unit variance
            self.settings = s.model_copy(update={"embedding_lr_multiplier": 1.0})
        inputs = {
            "seed": params.seed_of("pretrain"),
            "model": params.model.model_dump(mode="json"),
            "pretrain": s.model_dump(mode="json"),
            "data/tokens": sha256(tokens / "meta.json"),  # holds every shard's digest
        }
        self.state = open_state(name, inputs | init_digests | code_version())
        self.val_set = self.windows(self.val, partial=True)

    def windows(self, stream: TokenStream, partial: bool = False) -> TokenWindows:
        """Cut a stream into rows; with `partial`, keep a last row that is shorter."""
        s = self.params.pretrain
        return TokenWindows(stream, s.sequence_length, s.attend_across_documents, partial=partial)

    def trainer(self, tracker: Tracker, quick_val_set: Dataset | None = None) -> Trainer:
        """Return the run's trainer; `quick_val_set` is scored between steps (None: all of it)."""
        s = self.settings
        return Trainer(
            self.model,
            self.train_set,
            self.val_set,
            quick_val_set or self.val_set,
            s,
            s.steps,
            self.params.seed_of("pretrain"),
            self.state,
            tracker,
        )

    def metrics(self, result: Result) -> dict[str, Any]:
        """Return the figures of a finished run, for metrics/pretrain.json."""
        s, config = self.params.pretrain, self.model.config
        return {
            "val_loss": result.val_loss,
            "val_bits_per_byte": result.val_loss
            * self.val_set.predicted
            / math.log(2)
            / self.val.bytes,
            "val_perplexity": math.exp(result.val_loss),
            "train_loss": result.train_loss,
            "parameters": config.parameters(),
            "parameters_embedding": self.model.model.embed_tokens.weight.numel(),
            "tokens": result.tokens,
            "epochs": result.tokens / (self.train_set.num_rows * s.sequence_length),
            "steps": result.steps,
            "batch_tokens": s.batch_tokens,
            "flops": result.flops,
        }

"""A finetuning run: its examples, its model, and the state that it can resume from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llm.data.examples import packed_examples
from llm.data.packing import LossWeights, PackedExamples
from llm.model.hf_files import digests
from llm.params import Params
from llm.runtime.io import sha256
from llm.tokenizer.bpe import Tokenizer
from llm.train import finetune_methods
from llm.train.checkpoint import open_state
from llm.train.checkpoint.local import code_version
from llm.train.trainer import Result, Trainer
from llm.train.training_log import Tracker


class Finetuning:
    """The run that the params `finetune` describe, on the mixed examples of one folder."""

    def __init__(
        self, params: Params, mix: Path, name: str = "finetune", steps: int | None = None
    ) -> None:
        """Prepare the model and name the state.

        Args:
            mix: folder with train.parquet and val.parquet.
            name: of the run, in messages and in the state's path.
            steps: optimizer steps; None: as `finetune.epochs` says.

        Raises:
            UserError: examples or base model are missing, broken or do not fit together.
        """
        s = self.settings = params.finetune
        self.seed, length = params.seed_of("finetune"), s.sequence_length
        self.tokenizer = Tokenizer.load(s.base)
        self.model = finetune_methods.prepare(s, self.tokenizer, self.seed)
        self.trainable = sum(x.numel() for x in self.model.parameters() if x.requires_grad)
        weights = LossWeights(
            s.prompt_loss_weight, s.loss_per == "example", len(self.tokenizer.prefix)
        )
        self.train_set = packed_examples(
            mix / "train.parquet", self.tokenizer, length, self.seed, weights=weights
        )[""]
        self.val_sets = packed_examples(
            mix / "val.parquet", self.tokenizer, length, self.seed, by_task=True
        )
        self.val_set = self.val_sets.pop("")  # all tasks together
        self.steps = steps or max(
            1, math.ceil(s.epochs * self.train_set.num_rows * length / s.batch_tokens)
        )
        self.base = digests(Path(s.base))
        inputs = {
            "seed": self.seed,
            "finetune": s.model_dump(mode="json"),
            "base": self.base | {"tokenizer.json": sha256(Path(s.base) / "tokenizer.json")},
            "data/mix": {split: sha256(mix / f"{split}.parquet") for split in ("train", "val")},
        }
        self.state = open_state(name, inputs | code_version() | finetune_methods.versions(s))

    def trainer(self, tracker: Tracker, quick_val_set: PackedExamples | None = None) -> Trainer:
        """Return the run's trainer; `quick_val_set` is scored between steps (None: the params')."""
        return Trainer(
            self.model,
            self.train_set,
            self.val_set,
            quick_val_set or self.val_set.head(self.settings.eval_tokens),
            self.settings,
            self.steps,
            self.seed,
            self.state,
            tracker,
        )

    def metrics(self, result: Result, by_task: dict[str, float]) -> dict[str, Any]:
        """Return the figures of a finished run, for metrics/finetune.json."""
        added = self.trainable if self.settings.method != "full" else 0
        return {
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "trainable_parameters": self.trainable,
            "trainable_fraction": self.trainable / (self.model.config.parameters() + added),
            "examples": self.train_set.num_examples,
            "epochs": self.settings.epochs,
            "steps": result.steps,
            "tokens": result.tokens,
            "val_loss_by_task": by_task,
        }

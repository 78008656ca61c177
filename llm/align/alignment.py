"""A run of training on preferences: its pairs, its model, and the state that it can resume from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm.align.losses import Answers, PreferenceLoss, answers_of
from llm.align.pair_files import read_pairs
from llm.data.batches import host_tensors
from llm.data.pairs import PackedPairs, Pair
from llm.errors import UserError
from llm.model.hf_files import digests, load_config
from llm.model.loss import token_losses
from llm.model.transformer import Transformer
from llm.params import Params
from llm.params.align import with_method
from llm.runtime.io import sha256
from llm.tokenizer.bpe import Tokenizer
from llm.train import finetune_methods
from llm.train.checkpoint import open_state
from llm.train.checkpoint.local import code_version
from llm.train.trainer import Result, Trainer
from llm.train.training_log import Tracker


class Alignment:
    """The run that the params `align` describe, on the pairs of one folder."""

    def __init__(self, params: Params, folder: Path) -> None:
        """Prepare the model, score the pairs under the reference, and name the state.

        The reference is the model before training: while an adapter is zero, they are the same.

        Args:
            folder: data/preferences, with train.parquet and val.parquet.

        Raises:
            UserError: pairs or base model are missing, broken or do not fit together.
        """
        s = self.settings = with_method(params.align)
        assert s.method is not None
        self.seed = params.seed if s.seed is None else s.seed
        self.tokenizer = Tokenizer.load(s.base)
        context = load_config(s.base).max_position_embeddings
        self.finetune = s.finetune(context)
        self.model = finetune_methods.prepare(self.finetune, self.tokenizer, self.seed)
        if self.model.fill is not None:
            raise UserError("align: a sharded model is not supported; unset LLM_SHARDING.")
        self.trainable = sum(x.numel() for x in self.model.parameters() if x.requires_grad)
        self.train_set, self.val_set = (
            self._pairs(folder / f"{side}.parquet", context) for side in ("train", "val")
        )
        for pairs in (self.train_set, self.val_set):
            pairs.reference = log_probs(self.model, pairs).policy.numpy()
        # The engine calls `model.loss`; DDP and the trial batch do, too.
        self.model.loss = PreferenceLoss(self.model, s.method, s.beta, s.simpo_gamma)  # type: ignore[method-assign,assignment]
        rows = s.batch_tokens // s.sequence_length
        self.steps = max(1, math.ceil(s.epochs * self.train_set.num_rows / rows))
        self.base = digests(Path(s.base))
        inputs = {
            "seed": self.seed,
            "align": s.model_dump(mode="json"),
            "base": self.base | {"tokenizer.json": sha256(Path(s.base) / "tokenizer.json")},
            "pairs": {side: sha256(folder / f"{side}.parquet") for side in ("train", "val")},
        }
        self.state = open_state("align", inputs | code_version())

    def _pairs(self, path: Path, context: int) -> PackedPairs:
        rows, tokenizer = read_pairs(path), self.tokenizer
        columns = (
            tokenizer.chat_batch([row["prompt"] for row in rows]),
            tokenizer.response_batch([row["chosen"] for row in rows]),
            tokenizer.response_batch([row["rejected"] for row in rows]),
        )
        pairs = []
        for row, prompt, chosen, rejected in zip(rows, *columns, strict=True):
            pair = Pair(prompt, [*chosen, tokenizer.eos_id], [*rejected, tokenizer.eos_id])
            longest = len(prompt) + max(len(pair.chosen), len(pair.rejected))
            if longest > context or pair.tokens > self.settings.sequence_length:
                raise UserError(
                    f"{path}: pair {row['id']} has {longest} tokens in its longer sequence and {pair.tokens} in both; "
                    f"the model's context holds {context}, and align.sequence_length = "
                    f"{self.settings.sequence_length} must hold both."
                )
            pairs.append(pair)
        return PackedPairs(pairs, self.settings.sequence_length, tokenizer.eos_id, self.seed)

    def trainer(self, tracker: Tracker) -> Trainer:
        """Return the run's trainer."""
        sets = self.train_set, self.val_set, self.val_set
        return Trainer(self.model, *sets, self.settings, self.steps, self.seed, self.state, tracker)

    def metrics(self, result: Result) -> dict[str, Any]:
        """Return the figures of a finished run, for metrics/align.json.

        reward_margin: mean over validation pairs of (c - c') - (r - r'), in nats; see losses.py.
        accuracy: share of them in which it is above 0; one half is chance.
        kl: mean of c' - c and r' - r, in nats an answer, on these answers of the reference: an
            estimate of the divergence of the model from the reference, were answers not selected.
        """
        after = log_probs(self.model, self.val_set).policy.numpy()
        gains = after - self.val_set.reference
        margins = gains[:, 0] - gains[:, 1]
        return {
            "method": self.settings.method,
            "pairs": len(self.train_set.pairs),
            "val_pairs": len(self.val_set.pairs),
            "val_loss": result.val_loss,
            "train_loss": result.train_loss,
            "reward_margin": float(margins.mean()),
            "accuracy": float((margins > 0).mean()),
            "kl": float(-gains.mean()),
            "trainable_parameters": self.trainable,
            "steps": result.steps,
            "tokens": result.tokens,
        }


@torch.no_grad()
def log_probs(model: Transformer, data: PackedPairs, rows: int = 4) -> Answers:
    """Return the log-probabilities of all answers in float32, (pairs, 2), without dropout.

    Args:
        model: the model.
        data: the pairs; results are in their order.
        rows: rows that go through the model at a time.
    """
    before, training = model.compute_dtype, model.training
    model.compute_dtype = torch.float32
    model.eval()
    device = model.lm_head.weight.device
    policy, tokens = torch.zeros(len(data.pairs), 2), torch.zeros(len(data.pairs), 2)
    for start in range(0, data.num_rows, rows):
        ids = np.arange(start, min(start + rows, data.num_rows))
        t = {k: v.to(device) for k, v in host_tensors(data, ids, len(ids), pin=False).items()}
        hidden = model.hidden_states(t["input_ids"], t["positions"], t["segments"])
        losses = token_losses(hidden, model.lm_head.weight, t["targets"])
        found, _ = answers_of(losses, t["targets"], t["answers"], t["reference"])
        for number, row in enumerate(ids):
            pairs = data.packed[int(row)]
            first = number * (-(-data.capacity // 2))
            policy[pairs] = found.policy[first : first + len(pairs)].cpu()
            tokens[pairs] = found.tokens[first : first + len(pairs)].cpu()
    model.compute_dtype = before
    model.train(training)
    return Answers(policy, torch.zeros_like(policy), tokens)

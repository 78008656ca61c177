"""Training examples of the tasks as documents of the pretraining text.

A model that reads some examples while all its weights are trained learns what finetuning then
builds on, and the text of the examples is text to learn from (instruction pre-training: Cheng et
al. 2024, arXiv:2406.14491; docs/LOG.md has the measured gain).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain

import numpy as np
import pyarrow as pa

from llm.corpus.encode import Encoded
from llm.corpus.statistics import Counts
from llm.tasks import mixture, splits
from llm.tasks.mixture import Dataset
from llm.text.ngrams import Grams
from llm.tokenizer.bpe import Tokenizer


def encode_examples(
    datasets: Iterable[Dataset],
    quotas: Mapping[str, int],
    tokenizer: Tokenizer,
    seed: int,
    max_tokens: int,
    held_out: Grams | None,
) -> Encoded:
    """Return training examples in the form in which finetuning shows them, in shuffled order.

    They are drawn in the order in which stage `mix` draws, so both take the same ones first.

    Args:
        datasets: the tasks.
        quotas: number of examples by task; all usable ones where there are fewer.
        tokenizer: encodes prompts and responses as conversations.
        seed: decides which are drawn.
        max_tokens: most tokens of an example.
        held_out: examples with one of these runs of words are left out.
    """
    settings = tokenizer, seed, max_tokens, held_out
    drawn = (
        mixture.draw_task(dataset, splits.TRAIN, quotas[dataset.name], *settings).examples
        for dataset in datasets
        if dataset.name in quotas
    )
    examples = mixture.shuffled(chain.from_iterable(drawn), seed)
    heads = tokenizer.chat_batch([example.prompt for example in examples])
    answers = tokenizer.response_batch([example.response for example in examples])
    documents = [
        [*head, *answer, tokenizer.eos_id] for head, answer in zip(heads, answers, strict=True)
    ]
    counts = Counts(tokenizer.vocab_size)
    ids = np.array([i for document in documents for i in document], dtype=tokenizer.id_type)
    counts.add(
        np.array([len(f"{e.prompt}{e.response}".encode()) for e in examples], dtype=np.int64),
        np.array([len(document) for document in documents], dtype=np.int64),
        np.zeros(len(examples), dtype=bool),
        pa.array([f"task {example.task}" for example in examples], pa.string()),
    )
    counts.tokens += np.bincount(ids, minlength=len(counts.tokens))
    return Encoded({"train": ids, "val": ids[:0]}, counts)

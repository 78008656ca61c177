"""Examples of `data/mix`, tokenized and packed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from llm.data.packing import LossWeights, PackedExamples
from llm.errors import UserError
from llm.runtime.parquet import readable
from llm.tokenizer.bpe import Tokenizer


def packed_examples(
    path: Path,
    tokenizer: Tokenizer,
    length: int,
    seed: int,
    by_task: bool = False,
    weights: LossWeights | None = None,
) -> dict[str, PackedExamples]:
    """Pack the examples of a parquet file into rows of `length` tokens.

    `weights` are those of tokens in the loss; None: a response's tokens weigh one, others nothing.

    Returns:
        All examples under "", and with `by_task` also those of each task under its name.

    Raises:
        UserError: the file is missing or broken, or an example is longer than a row.
    """
    with readable(path, "Run `dvc repro -sf mix` to write it again."):
        table = pq.read_table(path, columns=["id", "task", "prompt", "response"])
    groups: dict[str, list[tuple[list[int], int]]] = defaultdict(list)
    for batch in table.to_batches(max_chunksize=1024):
        columns = batch.to_pydict()
        prompts = tokenizer.chat_batch(columns["prompt"])
        responses = tokenizer.response_batch(columns["response"])
        for i, (head, response) in enumerate(zip(prompts, responses, strict=True)):
            if not columns["prompt"][i]:  # plain text
                head, response = [], tokenizer.encode(columns["response"][i])
            ids = [*head, *response, tokenizer.eos_id]
            if len(ids) > length:
                raise UserError(
                    f"{path}: example {columns['id'][i]} has {len(ids)} tokens, more than "
                    f"finetune.sequence_length = {length}; lower mix.max_tokens."
                )
            groups[""].append((ids, len(head)))
            if by_task:
                groups[columns["task"][i]].append((ids, len(head)))
    if not groups:
        raise UserError(f"{path} holds no examples; look at metrics/mix.json for what was dropped.")
    return {
        name: PackedExamples(items, length, tokenizer.eos_id, seed, weights)
        for name, items in groups.items()
    }

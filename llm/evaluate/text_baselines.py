"""Text baselines and contamination, computed in one pass over the training text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from llm.evaluate import compression, language, metrics
from llm.evaluate.contamination import Contamination
from llm.evaluate.metrics import Measure
from llm.evaluate.test_sets import TestSet
from llm.runtime.progress import Progress

if TYPE_CHECKING:
    from llm.data.shards import TokenStream
    from llm.data.val_sample import ValSample
    from llm.tokenizer.bpe import Tokenizer

CHECKED_DOCUMENTS = 10_000  # held-out documents whose contamination is measured, at most


@dataclass(frozen=True)
class TextResults:
    """`measures` by model name (`baseline:zstd`, `baseline:unigram`), and the contaminated share by
    task.

    `contamination_by_text` tells apart which training text an example is found in: `pretraining`,
    `finetuning`."""

    measures: dict[str, list[Measure]]
    contamination: dict[str, float]
    contamination_by_text: dict[str, dict[str, float]]


def text_baselines_and_contamination(
    tests: list[TestSet],
    mix_texts: Iterable[str],
    train: TokenStream,
    val: ValSample,
    tokenizer: Tokenizer,
    context: int,
) -> TextResults:
    """Score zstd and token counts on held-out text, and measure contamination.

    Contamination covers every task and the held-out text.

    Args:
        mix_texts: the training examples of finetuning.
        val: the held-out text that the models are scored on.
        context: tokens of a window, for the unigram's interval; the same as the models' up to
            `language.WINDOW`.
    """

    def held_out() -> Iterator[str]:
        return (text for text, _ in compression.documents(val, tokenizer))

    contamination = Contamination()
    for test in tests:
        for texts in test.texts():
            contamination.add_example(test.name, texts)
    checked = set(val.spread(CHECKED_DOCUMENTS))
    for number, text in enumerate(held_out()):
        if number in checked:
            contamination.add_example("language_modeling", [text])

    sample = compression.Sample(train.bytes)
    with Progress("training text · contamination", len(train), "tokens", scale=True) as bar:
        for text, count in compression.documents(train, tokenizer):
            contamination.scan(text)
            sample.add(text)
            bar.update(count)
    for text in mix_texts:
        contamination.scan(text, "finetuning")

    dictionary, how = compression.train_dictionary(sample.pieces)
    compressed, original = compression.compressed_bytes(held_out(), dictionary)
    signature = (
        f"zstd level {compression.LEVEL}, each document alone, magicless frames|{how} from "
        f"{sum(map(len, sample.pieces))} bytes of training documents|{len(original)} documents, {original.sum()} bytes"
    )
    zstd = metrics.bits_per_byte(compressed * 8 * np.log(2.0), original, signature)

    window = min(context, language.WINDOW)
    counts = compression.token_counts(train, tokenizer.vocab_size)
    nats, predicted = compression.unigram_nats(val, counts, window)
    form = f"training counts of tokens, add-one|windows of {window} tokens"
    unigram = language.likelihood(nats, predicted, window, val, tokenizer, form)
    apart = {side: contamination.fractions(side) for side in ("pretraining", "finetuning")}
    return TextResults(
        {"baseline:unigram": unigram, "baseline:zstd": [zstd]}, contamination.fractions(), apart
    )

"""A model under test: its answers to the tests, and its likelihood of held-out text.

All processes call these functions with the same arguments; only the main one has the score book.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.data.val_sample import ValSample
from llm.evaluate import answers, language
from llm.evaluate.prompts import Shots
from llm.evaluate.scorebook import LANGUAGE_MODELING, ScoreBook
from llm.evaluate.test_sets import TestSet
from llm.model.hf_files import stop_ids
from llm.model.transformer import Transformer
from llm.params import Params
from llm.runtime.progress import Progress
from llm.tokenizer.bpe import Tokenizer


@dataclass
class Contestant:
    """A model, the directory it came from, and whether it answers prompts in chat form."""

    name: str
    model: Transformer
    directory: Path
    chat: bool

    def __post_init__(self) -> None:
        self.tokenizer = Tokenizer.load(self.directory)


def answer_tests(
    p: Params,
    c: Contestant,
    tests: Sequence[TestSet],
    examples: Mapping[str, Sequence[tuple[str, str]]],
    book: ScoreBook | None,
) -> None:
    """Answer every test; the finetuned model also answers with each of `evaluate.variants`.

    Args:
        examples: training examples of each task, for few-shot prompts.
        book: None in the other processes.

    Raises:
        UserError: a param names an unknown task, or the model cannot answer.
    """
    e = p.evaluate
    answers.check_limits(e.max_new_tokens, tests)
    variants = e.variants if c.name == "finetuned" else {}
    for label, decoding, test in answers.rounds(
        c.name, tests, e.decoding, variants, e.variant_examples
    ):
        shots = Shots(e.shots, examples[test.name], p.seed)
        who, stops = f"{c.directory}, {test.name}", stop_ids(c.directory, c.tokenizer)
        asking = answers.Asking(c.chat, e.max_new_tokens, decoding, shots, p.seed, who, stops)
        with Progress(
            f"{label} · {test.name}", len(test.rows), "examples", quiet=book is None
        ) as bar:
            model_answers = answers.answer(c.model, c.tokenizer, test, asking, bar.update)
        if book is not None:
            book.answers(label, test, model_answers)


def read_text(c: Contestant, text: ValSample, names: list[str], book: ScoreBook | None) -> None:
    """Score the likelihood of held-out text, as a whole and by source.

    Args:
        names: the source of each document.
        book: None in the other processes.
    """
    windows = language.language_modeling(
        c.model, text, c.tokenizer, f"{c.directory}, {LANGUAGE_MODELING}"
    )
    if book is not None:
        source_measures = language.by_source(
            windows, names, text.document_bytes, text.document_tokens
        )
        book.windows(c.name, windows, source_measures)

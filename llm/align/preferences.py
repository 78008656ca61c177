"""Preferences from programs: a model's own answers to training prompts, ordered by their score.

The answers to a prompt are drawn at a temperature and scored by the task's own metric against the
example's response; the best and the worst become a pair if they differ by a margin. No human
judgement is needed. Draws depend on (seed, example, number of the answer) alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llm.align.pair_files import Preference
from llm.errors import UserError
from llm.evaluate import metrics
from llm.generation.generate import complete
from llm.generation.request import Request
from llm.model.transformer import Transformer
from llm.params import Decoding
from llm.params.align import Align
from llm.params.section import nearest
from llm.runtime.parquet import readable
from llm.tasks.base import key, uniform
from llm.tasks.splits import listed
from llm.tokenizer.bpe import Tokenizer

# Metrics between 0 and 1 whose mean is the reward, by kind of task.
REWARDS = {
    "question_answering": ("exact_match", "f1"),
    "summarization": ("rougeL",),
    "instructions": ("rougeL",),
}


def training_prompts(path: Path, a: Align, seed: int) -> list[dict[str, str]]:
    """Return the examples of data/mix/train.parquet whose prompts are answered.

    Args:
        path: the file, with columns id, task, prompt and response.
        a: `tasks` names their tasks; of each, the first `prompts` in the order of a hash are taken.
        seed: decides the order.

    Raises:
        UserError: the file cannot be read, or has no example of a task.
    """
    with readable(path, "Run `dvc repro -sf mix` to write it again."):
        rows = pq.read_table(path, columns=["id", "task", "prompt", "response"]).to_pylist()
    chosen = []
    for task in a.tasks:
        own = [row for row in rows if row["task"] == task]
        if not own:
            known = sorted({row["task"] for row in rows})
            raise UserError(f"align.tasks: {path} has no example of {task!r}{nearest(task, known)}")
        own.sort(key=lambda row: key("align", seed, row["id"]))
        chosen += own[: a.prompts]
    return chosen


def rewards(kind: str, answers: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Return the reward of each answer against its example's response, (answers,), from 0 to 1.

    Raises:
        UserError: answers to this kind of task have no graded score.
    """
    if kind not in REWARDS:
        raise UserError(
            f"align.tasks: answers of the kind {kind} have no graded reward; it takes tasks of the kinds "
            f"{', '.join(REWARDS)}."
        )
    references = [[response] for response in responses]
    scored = (
        metrics.question_answering(answers, references)
        if kind == "question_answering"
        else metrics.rouge(answers, references)
    )
    columns = [m.column for m in scored if m.name in REWARDS[kind]]
    return np.mean(np.array(columns, dtype=np.float64), axis=0)


def draw_answers(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Sequence[Mapping[str, str]],
    a: Align,
    seed: int,
    stop_ids: frozenset[int],
    on_progress: Callable[[int], object] | None = None,
) -> list[list[str | None]]:
    """Return `samples` answers to each example's prompt; None stands for one that did not end."""
    decoding = Decoding(temperature=a.temperature)
    requests = [
        Request(ids, a.max_new_tokens, decoding, key("answer", seed, example["id"], number))
        for example, ids in zip(
            examples, tokenizer.chat_batch([e["prompt"] for e in examples]), strict=True
        )
        for number in range(a.samples)
    ]
    done = complete(model, requests, stop_ids, tokenizer.decode, on_progress=on_progress)
    texts = [(c.text or "").strip() if c.reason == "stop" else None for c in done]
    return [texts[i : i + a.samples] for i in range(0, len(texts), a.samples)]


def pair(
    example: Mapping[str, str], answers: Sequence[str], scores: np.ndarray, margin: float
) -> Preference | str:
    """Return the best and the worst of some answers, or why they make no pair.

    Args:
        example: id, task and prompt.
        answers: at least one.
        scores: the rewards, (answers,); the first of equals counts.
        margin: least difference of the two rewards.
    """
    if not np.isfinite(scores).all():
        return "reward_not_finite"
    best, worst = int(np.argmax(scores)), int(np.argmin(scores))
    if scores[best] == scores[worst]:
        return "all_rewards_equal"
    if scores[best] - scores[worst] < margin:
        return "below_margin"
    if not answers[best] or not answers[worst]:
        return "empty_answer"
    return Preference(
        example["id"], example["task"], example["prompt"], answers[best], answers[worst],
        float(scores[best]), float(scores[worst]),
    )  # fmt: skip


def choose_pairs(
    examples: Sequence[Mapping[str, str]],
    answers: Sequence[Sequence[str | None]],
    kinds: Mapping[str, str],
    margin: float,
) -> tuple[list[Preference], Counter[str]]:
    """Return the pairs, and the prompts without one by reason.

    Args:
        examples: id, task, prompt and response.
        answers: the answers to each of them.
        kinds: the kind of each task.
        margin: least difference of two rewards.
    """
    pairs: list[Preference] = []
    dropped: Counter[str] = Counter()
    for example, drawn in zip(examples, answers, strict=True):
        ended = [text for text in drawn if text is not None]
        if not ended:
            dropped["no_answer_ended"] += 1
            continue
        scores = rewards(kinds[example["task"]], ended, [example["response"]] * len(ended))
        found = pair(example, ended, scores, margin)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            pairs.append(found)
    return pairs, dropped


def fitting(
    pairs: Sequence[Preference], tokenizer: Tokenizer, tokens: int
) -> tuple[list[Preference], Counter[str]]:
    """Return the pairs whose two sequences have at most `tokens` tokens together, and the others'
    count.
    """
    prompts = tokenizer.chat_batch([each.prompt for each in pairs])
    answers = (
        tokenizer.response_batch([each.chosen for each in pairs]),
        tokenizer.response_batch([each.rejected for each in pairs]),
    )
    kept = [
        each
        for each, prompt, chosen, rejected in zip(pairs, prompts, *answers, strict=True)
        if 2 * len(prompt) + len(chosen) + len(rejected) + 2 <= tokens
    ]
    return kept, Counter({"too_long": len(pairs) - len(kept)})


def split(
    pairs: Sequence[Preference], fraction: float, dropped: Mapping[str, int]
) -> dict[str, list[Preference]]:
    """Return the pairs as `train` and `val`, by a hash of their ids.

    Args:
        pairs: the pairs.
        fraction: share of `val`.
        dropped: prompts without a pair by reason, for the message.

    Raises:
        UserError: a side has none.
    """
    sides: dict[str, list[Preference]] = {"train": [], "val": []}
    for each in pairs:
        sides["val" if uniform("align", each.id) < fraction else "train"].append(each)
    for side, own in sides.items():
        if not own:
            raise UserError(
                f"preferences: no pair for {side} among {len(pairs)} (prompts without one: {listed(dropped)}). Raise "
                "align.prompts, align.samples or align.max_new_tokens, or lower align.margin."
            )
    return sides

"""Token ids of test prompts: their form, the examples before them, and truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

from llm.evaluate import metrics
from llm.evaluate.baselines import Row
from llm.evaluate.metrics import Measure
from llm.tasks.base import uniform
from llm.text.sentences import word_borders

if TYPE_CHECKING:
    from llm.tokenizer.bpe import Tokenizer

BETWEEN = (
    "\n\n"  # stands between the shots of a plain prompt, and so ends a plain answer after shots
)


@dataclass(frozen=True)
class Shots:
    """Worked examples before each prompt: `count` of the training examples, drawn by a hash of seed
    and example id.
    """

    count: int = 0
    examples: Sequence[tuple[str, str]] = ()  # prompts and responses
    seed: int = 0

    def drawn(self, example_id: str) -> list[tuple[str, str]]:
        """Return the shots of one test example: distinct, and the same in every run."""
        wanted, indices, attempt = min(self.count, len(self.examples)), dict[int, None](), 0
        while len(indices) < wanted:
            indices[int(uniform("shot", self.seed, example_id, attempt) * len(self.examples))] = (
                None
            )
            attempt += 1
        return [self.examples[index] for index in indices]


NONE = Shots()


@dataclass(frozen=True)
class Prompts:
    """Token ids of the prompts, their counts, and their form, for signatures.

    lost: characters that each prompt lost at its beginning, to the model's context.
    """

    ids: list[list[int]]
    lost: list[int]
    counts: list[Measure]
    form: str


def prompts(
    tokenizer: Tokenizer, rows: Sequence[Row], chat: bool, room: int, shots: Shots = NONE
) -> Prompts:
    """Return the ids of every prompt, at most `room` each.

    If a prompt and its shots are too long, the first shots are dropped; a prompt that is too long
    alone loses its beginning. Counts: prompts that lost text (to the mixture's limit or to the
    context), and shots shown.
    """
    ids, lost, cut, shown = [], [], [], []
    before_all, after_all = ((), ()) if chat else tokenizer.around
    room = max(1, room - len(before_all) - len(after_all))
    for row in rows:
        own, gone = prompt_ids(tokenizer, row["prompt"], chat, room)
        before = (
            [_shot_ids(tokenizer, *shot, chat) for shot in shots.drawn(row["id"])]
            if shots.count
            else []
        )
        while before and sum(map(len, before)) + len(own) > room:
            before.pop(0)
        ids.append([token for part in (before_all, *before, own, after_all) for token in part])
        lost.append(gone)
        cut.append(float(bool(row["truncated"]) or gone > 0))
        shown.append(len(before))
    counts = [metrics.mean("truncated", "share of prompts that lost text|scale:0-1", cut)]
    if shots.count:
        counts.append(
            metrics.mean(
                "shots",
                f"examples before a prompt, on average; {shots.count} where they fit",
                shown,
            )
        )
    return Prompts(ids, lost, counts, f"prompt:{'chat' if chat else 'plain'}, {shots.count}-shot")


def prompt_ids(tokenizer: Tokenizer, prompt: str, chat: bool, room: int) -> tuple[list[int], int]:
    """Token ids of a prompt, at most `room`, and how many characters were cut: a prompt that is too
    long loses its beginning.

    chat: in the tokenizer's chat template, as in finetuning. Otherwise plain text that ends with a
        line break: a base model has never seen the chat tokens.
    """
    ids = tokenizer.chat_ids(prompt) if chat else tokenizer.encode(prompt + "\n")
    if len(ids) <= room:
        return ids, 0
    # Keep the tokens before the prompt: a soft prompt, a system message, the user's mark.
    pairs = zip(ids[:room], tokenizer.chat_ids("") if chat else [], strict=False)
    first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    after = len(ids) - room + first
    return [*ids[:first], *ids[after:]], max(1, len(tokenizer.decode(ids[first:after])))


def visible(text: str, prompt: str, lost: int) -> str:
    """Return the words of a text that a prompt shows.

    Args:
        text: the whole text. The prompt may hold its beginning only, because it was too long.
        prompt: the prompt.
        lost: characters that the model does not see at the beginning of the prompt.
    """
    text = text.strip()
    low, high = 0, len(text)  # The prompt holds every beginning of what it holds: bisect.
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if text[:middle] in prompt else (low, middle - 1)
    hidden = lost - prompt.rfind(text[:low])
    starts, ends = word_borders(text)
    first = next((start for start in starts if start >= hidden), len(text))
    return text[first : max((end for end in ends if end <= low), default=0)]


def _shot_ids(tokenizer: Tokenizer, prompt: str, response: str, chat: bool) -> list[int]:
    """A worked example as the model would meet it: a turn of a chat with its end, or two paragraphs
    of text.
    """
    if chat:
        return [*tokenizer.chat_ids(prompt), *tokenizer.response_ids(response), tokenizer.eos_id]
    return tokenizer.encode(f"{prompt}\n{response}{BETWEEN}")


def room_for(context: int, new_tokens: int) -> int:
    """Return the tokens left for the prompt: the context without the answer, but at least half of it."""
    return max(1, context // 2, context - new_tokens)

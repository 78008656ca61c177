"""Continuous batching (Yu et al. 2022, Orca): a row whose sequence ends is given to the next
request at once.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from llm.generation import kv_cache as step
from llm.generation.prompt_lookup import Lookup
from llm.generation.request import Completion, Decode, Request, stopped
from llm.generation.sampling import choose, draws, greedy
from llm.model.transformer import Transformer


class Row:
    """A request under way. The cache holds all of its tokens but the last one."""

    def __init__(self, key: Hashable, request: Request, vocab: int, context: int) -> None:
        self.key, self.request = key, request
        self.out: list[int] = []
        # The last token of an answer is not read, so it needs no place in the context.
        self.most = min(request.max_new_tokens, context - len(request.prompt) + 1)
        self.draws = (
            draws(request.seed, self.most) if request.decoding.temperature else np.zeros(self.most)
        )
        self.lookup = Lookup(request.prompt) if request.decoding.prompt_lookup_num_tokens else None
        self.seen: torch.Tensor | None = None
        if request.decoding.repetition_penalty != 1:
            self.seen = torch.zeros(vocab, dtype=torch.bool)
            # A soft prompt's tokens stand behind the vocabulary; nothing repeats them.
            self.seen[[token for token in request.prompt if token < vocab]] = True

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return len(self.request.prompt) + len(self.out) - 1

    def guess(self) -> list[int]:
        """Tokens that may come next, never beyond the answer's end."""
        if self.lookup is None:
            return []
        return self.lookup.guess(
            min(self.request.decoding.prompt_lookup_num_tokens, self.most - len(self.out) - 1)
        )

    def add(self, token: int) -> None:
        """Take a token into the answer."""
        self.out.append(token)
        if self.lookup:
            self.lookup.extend([token])
        if self.seen is not None:
            self.seen[token] = True

    def finished(self, stop_ids: frozenset[int]) -> Completion | None:
        """The completion, where the answer has ended."""
        strings, decode = self.request.decoding.stop_strings, self.request.decode
        found = (
            stopped(self.out, stop_ids, strings, decode)
            if strings or self.out[-1] in stop_ids
            else None
        )
        if found or len(self.out) < self.most:
            return found
        return self.end("length" if self.most == self.request.max_new_tokens else "context")

    def end(self, reason: str) -> Completion:
        """The completion as it stands."""
        decode = self.request.decode
        return Completion(self.out, reason, decode(self.out) if decode else None)  # type: ignore[arg-type]


class Batch:
    """Rows of one cache, and the loop that fills them.

    Args:
        model: in evaluation mode.
        rows: sequences side by side.
        slots: tokens of prompt, answer and guesses, at most.
        stop_ids: tokens that end an answer.
        decode: text of ids, where a request has no `decode` of its own; needed for stop strings
            and `Completion.text`.
        compiled: compile the step: pays after many steps, see
            `llm.generation.generate.compiling_pays`.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        slots: int,
        stop_ids: frozenset[int],
        decode: Decode | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.stop_ids, self.decode = model, stop_ids, decode
        self.rows: list[Row | None] = [None] * rows
        self.cache = step.Cache.empty(model, rows, slots)
        self.device = self.cache.keys[0].device
        self.compiled = compiled
        self._step: step.StepFunction = step.compiled(model) if compiled else step.Step(model)

    @property
    def free(self) -> list[int]:
        """Rows without a request."""
        return [number for number, row in enumerate(self.rows) if row is None]

    def answers(self) -> dict[Hashable, list[int]]:
        """The tokens so far of each request under way, by its key; the lists grow with every step."""
        return {row.key: row.out for row in self.rows if row}

    def drop(self, key: Hashable) -> None:
        """Take a request out, if it is still under way: its row is free for another."""
        self.rows = [None if row and row.key == key else row for row in self.rows]

    def admit(self, key: Hashable, request: Request) -> Completion | None:
        """Read a request's prompt into a free row and choose its first token; the completion if
        that ends it.

        Raises:
            ValueError: the prompt is empty or longer than the context.
        """
        context = self.model.config.max_position_embeddings
        if not 1 <= len(request.prompt) <= context:
            raise ValueError(
                f"a prompt of {len(request.prompt)} tokens; expected 1 to {context}, the model's context"
            )
        number = self.free[0]
        row = Row(
            key,
            replace(request, decode=request.decode or self.decode),
            self.model.config.vocab_size,
            context,
        )
        logits = step.prefill(self.model, request.prompt, self.cache, number)
        self.rows[number] = row
        return self._take({number: []}, logits[None, None]).get(number)

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Completion]]:
        """One step of all rows; the requests that ended with it, by their keys."""
        active = {number: row for number, row in enumerate(self.rows) if row is not None}
        guesses = {number: row.guess() for number, row in active.items()}
        width = 1 + max(map(len, guesses.values()))
        if self.compiled and width > 1:  # one shape with guesses, one without
            width = 1 + max(
                row.request.decoding.prompt_lookup_num_tokens for row in active.values()
            )
        ids = torch.zeros(
            len(self.rows), width, dtype=torch.long
        )  # idle rows and missing guesses read token 0
        lengths = torch.zeros(len(self.rows), dtype=torch.long)
        for number, row in active.items():
            ids[number, : 1 + len(guesses[number])] = torch.tensor([row.out[-1], *guesses[number]])
            lengths[number] = row.length
        logits = self._step(
            ids.to(self.device), lengths.to(self.device), self.cache.keys, self.cache.values
        )
        keys = {number: row.key for number, row in active.items()}
        numbers = torch.tensor(list(guesses), device=self.device)
        rows = logits if len(active) == len(self.rows) else logits[numbers]
        return [(keys[number], done) for number, done in self._take(guesses, rows).items()]

    def _take(self, guesses: dict[int, list[int]], logits: torch.Tensor) -> dict[int, Completion]:
        """Choose tokens from logits (len(guesses), width, vocab) as far as the guesses were right;
        what ended.
        """
        ended: dict[int, Completion] = {}
        going = list(enumerate(guesses))  # (place in logits, row)
        for i in range(logits.shape[1]):
            here = (
                logits[:, i]
                if len(going) == len(logits)
                else logits[[place for place, _ in going], i]
            )
            tokens = self._choose([number for _, number in going], here)
            rest = []
            for (place, number), (token, finite) in zip(going, tokens, strict=True):
                row = self.rows[number]
                assert row is not None
                if not finite:
                    ended[number] = row.end("not_finite")
                    continue
                row.add(token)
                done = row.finished(self.stop_ids)
                if done:
                    ended[number] = done
                elif guesses[number][i : i + 1] == [token]:
                    rest.append((place, number))
            going = rest
            if not going:
                break
        for number in ended:
            self.rows[number] = None
        return ended

    def _choose(self, numbers: Sequence[int], logits: torch.Tensor) -> list[tuple[int, bool]]:
        """A token for each of these rows, and whether its logit is finite: a NaN is chosen before
        any number.
        """
        rows = [row for number in numbers if (row := self.rows[number])]
        settings = [row.request.decoding for row in rows]
        if greedy(settings):
            values, tokens = logits.max(-1)
        else:
            seen = None
            if any(row.seen is not None for row in rows):
                nothing = torch.zeros(logits.shape[-1], dtype=torch.bool)
                seen = torch.stack([nothing if row.seen is None else row.seen for row in rows]).to(
                    logits.device
                )
            tokens = choose(
                logits, settings, seen, [float(row.draws[len(row.out)]) for row in rows]
            )
            values = logits.amax(-1)
        return list(zip(tokens.tolist(), values.isfinite().tolist(), strict=True))

"""Continuous batching (Yu et al. 2022, Orca): a free row takes the next request at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch

from llm.generation import kv_cache
from llm.generation.prompt_lookup import Lookup
from llm.generation.request import Completion, Decode, Request, stopped
from llm.generation.sampling import choose, draws, greedy, only
from llm.model.transformer import Transformer


class Row:
    """A request in progress. The cache holds all of its tokens but the last one."""

    def __init__(self, key: Hashable, request: Request, vocab: int, context: int) -> None:
        self.key, self.request = key, request
        self.out: list[int] = []
        # The last token of an answer is not read, so it needs no slot in the context.
        self.most = min(request.max_new_tokens, context - len(request.prompt) + 1)
        self.draws = (
            draws(request.seed, self.most) if request.decoding.temperature else np.zeros(self.most)
        )
        self.lookup = Lookup(request.prompt) if request.decoding.prompt_lookup_num_tokens else None
        self.span = request.span
        self.seen: torch.Tensor | None = None
        if request.decoding.repetition_penalty != 1:
            self.seen = torch.zeros(vocab, dtype=torch.bool)
            # A soft prompt's token ids follow the vocabulary; they are never generated.
            self.seen[[token for token in request.prompt if token < vocab]] = True

    @property
    def length(self) -> int:
        """Number of tokens in the cache."""
        return len(self.request.prompt) + len(self.out) - 1

    def guess(self) -> list[int]:
        """Return tokens that may come next, never beyond the answer's limit."""
        if self.lookup is None:
            return []
        return self.lookup.guess(
            min(self.request.decoding.prompt_lookup_num_tokens, self.most - len(self.out) - 1)
        )

    def add(self, token: int) -> None:
        """Append a token to the answer."""
        self.out.append(token)
        if self.lookup:
            self.lookup.extend([token])
        if self.seen is not None:
            self.seen[token] = True
        if self.span:
            self.span = self.span.after(token)

    def finished(self, stop_ids: frozenset[int]) -> Completion | None:
        """Return the completion if the answer has ended."""
        strings, decode = self.request.decoding.stop_strings, self.request.decode
        completion = (
            stopped(self.out, stop_ids, strings, decode)
            if strings or self.out[-1] in stop_ids
            else None
        )
        if completion or len(self.out) < self.most:
            return completion
        return self.end("length" if self.most == self.request.max_new_tokens else "context")

    def end(self, reason: str) -> Completion:
        """Return the answer so far as a completion."""
        decode = self.request.decode
        ids = self.request.complete_words(self.out)
        return Completion(ids, reason, decode(ids) if decode else None)  # type: ignore[arg-type]


class Batch:
    """Rows of one cache, filled with requests.

    Args:
        model: a model in evaluation mode.
        rows: number of sequences decoded together.
        slots: maximal number of tokens of prompt, answer and guesses.
        stop_ids: tokens that end an answer.
        decode: converts ids to text for requests without a `decode`; needed for stop strings and
            `Completion.text`.
        compiled: compile the step, which is worthwhile for many steps, see
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
        self.cache = kv_cache.Cache.empty(model, rows, slots)
        self.device = self.cache.keys[0].device
        self.compiled = compiled
        self._step: kv_cache.StepFunction = (
            kv_cache.compiled(model) if compiled else kv_cache.Step(model)
        )

    @property
    def free(self) -> list[int]:
        """Rows without a request."""
        return [number for number, row in enumerate(self.rows) if row is None]

    def answers(self) -> dict[Hashable, list[int]]:
        """Return the tokens so far of each request by its key; the lists grow with every step."""
        return {row.key: row.out for row in self.rows if row}

    def drop(self, key: Hashable) -> None:
        """Remove a request, if it is still in progress, and free its row."""
        self.rows = [None if row and row.key == key else row for row in self.rows]

    def admit(self, key: Hashable, request: Request) -> Completion | None:
        """Read a request's prompt into a free row and choose its first token.

        Returns:
            The completion if that token ends the answer, else None.

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
        logits = kv_cache.prefill(self.model, request.prompt, self.cache, number)
        self.rows[number] = row
        return self._take({number: []}, logits[None, None]).get(number)

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Completion]]:
        """Run one step of all rows; return the completed requests with their keys."""
        active = {number: row for number, row in enumerate(self.rows) if row is not None}
        guesses = {number: row.guess() for number, row in active.items()}
        width = 1 + max(map(len, guesses.values()))
        if self.compiled and width > 1:  # one shape with guesses, one without
            width = 1 + max(
                row.request.decoding.prompt_lookup_num_tokens for row in active.values()
            )
        # Idle rows and missing guesses read token 0.
        ids = torch.zeros(len(self.rows), width, dtype=torch.long)
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
        """Choose tokens for each row until a guess was wrong.

        Args:
            guesses: tokens that each active row guessed, by row number.
            logits: (len(guesses), width, vocab).

        Returns:
            The completions of the rows that ended, by row number.
        """
        ended: dict[int, Completion] = {}
        active = list(enumerate(guesses))  # (index in logits, row number)
        for i in range(logits.shape[1]):
            column = (
                logits[:, i]
                if len(active) == len(logits)
                else logits[[index for index, _ in active], i]
            )
            tokens = self._choose([number for _, number in active], column)
            confirmed = []
            for (index, number), (token, finite) in zip(active, tokens, strict=True):
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
                    confirmed.append((index, number))
            active = confirmed
            if not active:
                break
        for number in ended:
            self.rows[number] = None
        return ended

    def _choose(self, numbers: Sequence[int], logits: torch.Tensor) -> list[tuple[int, bool]]:
        """Choose a token for each of these rows from logits (len(numbers), vocab).

        Returns:
            Tokens, and whether each row's highest logit is finite; a NaN counts as the highest.
        """
        rows = [row for number in numbers if (row := self.rows[number])]
        settings = [row.request.decoding for row in rows]
        values, tokens = logits.max(-1)
        spans = any(row.span for row in rows)
        if spans:
            allowed = [row.span.allowed(self.stop_ids) if row.span else None for row in rows]
            logits = only(logits, allowed)
        if spans or not greedy(settings):
            seen = None
            if any(row.seen is not None for row in rows):
                none = torch.zeros(logits.shape[-1], dtype=torch.bool)
                seen = torch.stack([none if row.seen is None else row.seen for row in rows]).to(
                    logits.device
                )
            tokens = choose(
                logits, settings, seen, [float(row.draws[len(row.out)]) for row in rows]
            )
        return list(zip(tokens.tolist(), values.isfinite().tolist(), strict=True))

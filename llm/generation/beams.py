"""Beam search with the results of transformers' `generate(num_beams=…, early_stopping=False)`.

Each request has `beams` rows of the cache. A step takes the likeliest continuations, twice as many
as there are beams (more if there are several stop tokens). Those that end become finished
hypotheses. Their score is the summed log-probability divided by the length to the power of the
length penalty (Wu et al. 2016, arXiv:1609.08144, eq. 14, without its constant). The best of the
others are continued. The search ends when the best running one, scored at its current length, is
not above the worst of `beams` finished ones.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from llm.generation import kv_cache
from llm.generation.request import Completion, Decode, Request, stopped
from llm.generation.sampling import only, penalised
from llm.generation.spans import Span
from llm.model.transformer import Transformer

NEVER = -1.0e9  # score of candidates that must not be chosen, as in transformers


@dataclass
class Search:
    """A request in progress."""

    key: Hashable
    request: Request
    most: int  # maximal number of tokens of the answer
    running: list[list[int]]  # the answer so far of each beam
    scores: Tensor  # (beams,) summed log-probabilities, float32
    seen: Tensor | None  # (beams, vocab), if there is a repetition penalty
    spans: list[Span]  # the answer so far of each beam, if it must be a span; else none
    finished: list[tuple[float, list[int]]] = field(default_factory=list)  # best first


class Beams:
    """Rows of one cache in groups of `beams`, filled with requests; its use is as `batch.Batch`.

    Args:
        model: a model in evaluation mode.
        rows: number of requests decoded together.
        beams: number of beams of each request.
        slots: maximal number of tokens of prompt and answer.
        stop_ids: tokens that end an answer.
        decode: converts ids to text for requests without a `decode`.
        compiled: compile the step.
    """

    def __init__(
        self,
        model: Transformer,
        rows: int,
        beams: int,
        slots: int,
        stop_ids: frozenset[int],
        decode: Decode | None = None,
        compiled: bool = False,
    ) -> None:
        self.model, self.beams, self.stop_ids, self.decode = model, beams, stop_ids, decode
        self.searches: list[Search | None] = [None] * rows
        self.cache = kv_cache.Cache.empty(model, rows * beams, slots)
        self.device = self.cache.keys[0].device
        self._step: kv_cache.StepFunction = (
            kv_cache.compiled(model) if compiled else kv_cache.Step(model)
        )

    @torch.inference_mode()
    def admit(self, key: Hashable, request: Request) -> Completion | None:
        """Read a request's prompt into a free group and choose its first tokens.

        Returns:
            The completion if the search ends with them, else None.
        """
        group = self.searches.index(None)
        first = group * self.beams
        request = replace(request, decode=request.decode or self.decode)
        logits = kv_cache.prefill(self.model, request.prompt, self.cache, first)
        for part in (*self.cache.keys, *self.cache.values):
            prompt = part[first, :, : len(request.prompt)]
            part[first + 1 : first + self.beams, :, : len(request.prompt)] = prompt
        scores = torch.full((self.beams,), NEVER, device=self.device)
        scores[0] = 0.0  # all beams are equal at first, so only one of them is continued
        seen = None
        if request.decoding.repetition_penalty != 1:
            seen = torch.zeros(self.beams, len(logits), dtype=torch.bool, device=self.device)
            # A soft prompt's token ids follow the vocabulary; they are never generated.
            seen[:, [token for token in request.prompt if token < len(logits)]] = True
        most = min(
            request.max_new_tokens,
            self.model.config.max_position_embeddings - len(request.prompt) + 1,
        )
        spans = [request.span] * self.beams if request.span else []
        search = Search(key, request, most, [[] for _ in range(self.beams)], scores, seen, spans)
        done, _ = self._advance(search, logits.expand(self.beams, -1))
        if done is None:
            self.searches[group] = search
        return done

    @torch.inference_mode()
    def step(self) -> list[tuple[Hashable, Completion]]:
        """Run one step of all searches; return the completed requests with their keys."""
        ids = torch.zeros(len(self.searches) * self.beams, 1, dtype=torch.long)
        lengths = torch.zeros(len(ids), dtype=torch.long)
        for group, search in enumerate(self.searches):
            if search:
                rows = slice(group * self.beams, (group + 1) * self.beams)
                ids[rows, 0] = torch.tensor([answer[-1] for answer in search.running])
                lengths[rows] = len(search.request.prompt) + len(search.running[0]) - 1
        logits = self._step(
            ids.to(self.device), lengths.to(self.device), self.cache.keys, self.cache.values
        )[:, 0]
        ended: list[tuple[Hashable, Completion]] = []
        for group, search in enumerate(self.searches):
            if search:
                first = group * self.beams
                done, parents = self._advance(search, logits[first : first + self.beams])
                if done:
                    ended.append((search.key, done))
                    self.searches[group] = None
                elif parents != list(range(self.beams)):
                    # The beams of a group share the prompt, so only their answers are copied.
                    written = slice(len(search.request.prompt), int(lengths[first]) + 1)
                    for part in (*self.cache.keys, *self.cache.values):
                        block = part[first : first + self.beams, :, written]
                        block.copy_(block[parents])
        return ended

    def _advance(self, search: Search, logits: Tensor) -> tuple[Completion | None, list[int]]:
        """Advance a search by one token with logits (beams, vocab).

        Returns:
            The completion if the search has ended, and the parent of each beam.
        """
        settings, vocab = search.request.decoding, logits.shape[-1]
        if not bool(logits.amax(-1).isfinite().all()):
            return self._completion(search, "not_finite"), list(range(self.beams))
        scores = logits.log_softmax(-1)
        if search.seen is not None:
            scores = penalised(
                scores, search.seen, torch.full_like(scores[:, :1], settings.repetition_penalty)
            )
        if search.spans:
            scores = only(scores, [span.allowed(self.stop_ids) for span in search.spans])
        kept = max(2, 1 + len(self.stop_ids)) * self.beams
        best, flat = (scores + search.scores[:, None]).flatten().topk(min(kept, self.beams * vocab))
        candidates = [(search.running[i // vocab] + [i % vocab], i // vocab) for i in flat.tolist()]
        length = len(candidates[0][0])
        ends = [length == search.most or self._ends(answer, search) for answer, _ in candidates]
        # Only the first `beams` candidates may finish. The others ensure that `beams` candidates
        # remain to be continued.
        values = (best / length**settings.length_penalty).tolist()[: self.beams]
        search.finished += [
            (value, candidates[i][0])
            for i, value in enumerate(values)
            if ends[i] and value > -math.inf
        ]
        search.finished = sorted(search.finished, key=lambda item: -item[0])[: self.beams]
        running = best + torch.tensor(ends, device=best.device) * NEVER
        search.scores, indices = running.topk(self.beams)
        chosen = [candidates[i] for i in indices.tolist()]
        parents = [parent for _, parent in chosen]
        search.running = [answer for answer, _ in chosen]
        if search.seen is not None:
            search.seen = search.seen[parents]
            search.seen[torch.arange(self.beams), [answer[-1] for answer in search.running]] = True
        search.spans = [
            search.spans[parent].after(answer[-1])
            for answer, parent in zip(search.running, parents, strict=True)
            if search.spans
        ]
        if search.spans and float(search.scores[0]) < NEVER / 2:  # no span has a continuation
            return self._completion(search, "stop"), parents
        if all(ends):
            return self._completion(search, "length"), parents
        if len(search.finished) == self.beams:
            best_running = float(search.scores[0] / length**settings.length_penalty)
            if best_running <= search.finished[-1][0]:
                return self._completion(search, "stop"), parents
        return None, parents

    def _ends(self, answer: list[int], search: Search) -> bool:
        strings, decode = search.request.decoding.stop_strings, search.request.decode
        return answer[-1] in self.stop_ids or bool(
            strings and stopped(answer, self.stop_ids, strings, decode)
        )

    def _completion(self, search: Search, reason: str) -> Completion:
        """Return the best finished answer."""
        answer = search.finished[0][1] if search.finished else search.running[0]
        decode = search.request.decode
        completion = stopped(answer, self.stop_ids, search.request.decoding.stop_strings, decode)
        if completion and reason != "not_finite":
            return completion
        if reason != "not_finite":
            reason = "length" if search.most == search.request.max_new_tokens else "context"
        answer = search.request.complete_words(answer)
        return Completion(answer, reason, decode(answer) if decode else None)  # type: ignore[arg-type]

"""Answers to many prompts: continuous batching on a cache of fixed shape, or beam search."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from typing import cast

from llm.errors import UserError
from llm.generation.batch import Batch
from llm.generation.beams import Beams
from llm.generation.request import GREEDY, Completion, Decode, Request
from llm.generation.text_stream import TextStream
from llm.model.transformer import Transformer
from llm.params import Decoding

# Maximal number of sequences decoded together. More gain little on a CPU and need more memory.
ROWS = 32
# Steps times layers from which compiling the step is faster overall: docs/LOG.md.
COMPILE_PAYS = 150_000


def generate(
    model: Transformer,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    eos_id: int,
    decoding: Decoding = GREEDY,
    seeds: Sequence[int] | None = None,
    decode: Decode | None = None,
    batch_size: int = ROWS,
    on_progress: Callable[[int], object] | None = None,
) -> list[list[int]]:
    """Return the token ids of the answers to `prompts`, in order, without the end token.

    `complete` describes the arguments. `seeds` has the seed of each prompt; the default is its
    number.
    """
    requests = [
        Request(prompt or [eos_id], max_new_tokens, decoding, seeds[i] if seeds else i)
        for i, prompt in enumerate(prompts)
    ]
    return [
        c.ids
        for c in complete(
            model, requests, frozenset({eos_id}), decode, batch_size, None, on_progress
        )
    ]


def complete(
    model: Transformer,
    requests: Sequence[Request],
    stop_ids: frozenset[int],
    decode: Decode | None = None,
    batch_size: int = ROWS,
    compiled: bool | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> list[Completion]:
    """Return the answer to each request, in order.

    An answer does not depend on the other requests of its batch: rows share no state, each request
    has its own random numbers, and the shapes of a step are fixed. The batch size and the cache's
    length only affect the rounding of sums (relative 1e-6 in float32), which can decide between
    tokens whose logits are equal up to that error.

    Processes of one launch (llm/parallel/processes.py) share the requests. Each uses a batch of the
    same shape as a single process would, and all of them get all answers.

    Args:
        model: a model in evaluation mode.
        requests: the requests.
        stop_ids: tokens that end an answer.
        decode: converts ids to text; needed if a request has stop strings.
        batch_size: maximal number of sequences decoded together.
        compiled: compile the step; None to decide by the number of steps.
        on_progress: called with the number of new answers.

    Raises:
        UserError: a prompt is longer than the model's context, or there are stop strings but no
            `decode`.
    """
    context = model.config.max_position_embeddings
    for request in requests:
        if len(request.prompt) > context:
            raise UserError(
                f"a prompt has {len(request.prompt)} tokens; the model's context holds {context} "
                "(max_position_embeddings in its config.json). Shorten the prompt."
            )
        if request.decoding.stop_strings and decode is None and request.decode is None:
            raise UserError(
                "stop_strings need the tokenizer's decode, to read what was written so far."
            )
    from llm.parallel import processes

    answers: dict[Hashable, Completion] = {}
    for beams in sorted({request.decoding.num_beams for request in requests}):
        numbered = [
            (i, request)
            for i, request in enumerate(requests)
            if request.decoding.num_beams == beams
        ]
        for i, completion in _drain(model, numbered, beams, stop_ids, decode, batch_size, compiled):
            answers[i] = completion
            if on_progress:
                on_progress(1)
    own = len(answers)
    answers = processes.all_gather_dict(answers)
    if on_progress and len(answers) > own:
        on_progress(len(answers) - own)
    return [answers[i] for i in range(len(requests))]


def stream(
    model: Transformer, request: Request, stop_ids: frozenset[int], decode: Decode
) -> Generator[str, None, Completion]:
    """Yield the text of one answer piece by piece while it is generated, and return it; see `complete`.

    Raises:
        UserError: the prompt is longer than the model's context.
        ValueError: the request has more than one beam, so no text is final before the end.
    """
    context = model.config.max_position_embeddings
    if request.decoding.num_beams > 1:
        raise ValueError("beam search has no text to give out before its end")
    if len(request.prompt) > context:
        raise UserError(
            f"a prompt has {len(request.prompt)} tokens; the model's context holds {context}."
        )
    need = min(len(request.prompt) + request.max_new_tokens, context)
    batch = Batch(model, 1, need + request.decoding.prompt_lookup_num_tokens, stop_ids, decode)
    text = TextStream(request.decode or decode, request.decoding.stop_strings)
    done = batch.admit(None, request)
    while done is None:
        if piece := text.more(batch.answers()[None]):
            yield piece
        done = next((completion for _, completion in batch.step()), None)
    if piece := text.rest(done):
        yield piece
    return done


def _drain(
    model: Transformer,
    requests: list[tuple[int, Request]],
    beams: int,
    stop_ids: frozenset[int],
    decode: Decode | None,
    batch_size: int,
    compiled: bool | None,
) -> Iterator[tuple[int, Completion]]:
    """Yield completions with their numbers as they end, for this process's share of the requests."""
    from llm.parallel import processes

    context = model.config.max_position_embeddings
    need = [min(len(r.prompt) + r.max_new_tokens, context) for _, r in requests]
    guesses = max(r.decoding.prompt_lookup_num_tokens for _, r in requests)
    rows = max(1, min(batch_size // beams, len(requests)))
    if compiled is None:
        compiled = compiling_pays(model, sum(r.max_new_tokens for _, r in requests) / rows)
    batch: Batch | Beams
    if beams > 1:
        batch = Beams(model, rows, beams, max(need), stop_ids, decode, compiled)
    else:
        batch = Batch(model, rows, max(need) + guesses, stop_ids, decode, compiled)
    waiting = requests[processes.rank() :: processes.world_size()][::-1]
    busy = 0
    while waiting or busy:
        while waiting and busy < rows:
            number, request = waiting.pop()
            completion = batch.admit(number, request)
            if completion:
                yield number, completion
            else:
                busy += 1
        for key, completion in batch.step() if busy else ():
            busy -= 1
            yield cast(int, key), completion


def compiling_pays(model: Transformer, steps: float) -> bool:
    """Tell whether this many steps are worth the time of compilation.

    The rule uses counts, not measured times, so that a rerun decides the same.
    """
    from llm.parallel import hardware

    layers = model.config.num_hidden_layers
    return steps * layers > COMPILE_PAYS and hardware.compiles(
        "auto", model.lm_head.weight.device, float("inf")
    )

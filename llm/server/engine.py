"""The decoder thread behind the server; requests join and leave while it runs."""

from __future__ import annotations

import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from llm.generation.batch import Batch
from llm.generation.loaded_models import Named
from llm.generation.request import Completion, Request


class BusyError(Exception):
    """The queue is full."""


class ClosedError(Exception):
    """The decoder is shutting down."""


@dataclass(eq=False)
class Ticket:
    """A request at the decoder. It calls back from its own thread: `on_end` once, unless the ticket
    was cancelled.
    """

    request: Request
    on_end: Callable[[Completion | Exception], None]
    on_tokens: Callable[[list[int]], None] | None = None  # all tokens so far, after each step
    cancelled: bool = False


@dataclass(eq=False)
class Lane:
    """A model, the batch of its answers under way, and the requests that wait for a row."""

    named: Named
    rows: int
    slots: int
    batch: Batch = field(init=False)
    waiting: deque[Ticket] = field(default_factory=deque)
    running: list[Ticket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.clear()

    @property
    def cache_bytes(self) -> int:
        """Memory of the keys and values of all rows; it does not grow."""
        return sum(part.nbytes for part in (*self.batch.cache.keys, *self.batch.cache.values))

    def clear(self) -> None:
        """An empty batch, with no answer under way."""
        named = self.named
        self.batch = Batch(
            named.model, self.rows, self.slots, named.stop_ids, named.tokenizer.decode
        )
        self.running = []


class Engine:
    """Decodes for several models in one thread, a step of each in turn.

    Between two steps of a model at most one waiting prompt is read, so that running answers continue to
    stream. A request has a seed and a row of its own, in a batch whose shape never changes: its
    answer does not depend on others'.

    Args:
        rows: answers side by side, of each model.
        slots: tokens of prompt and answer together, at most.
        queue: requests that may wait, for each model.
    """

    def __init__(self, models: Iterable[Named], rows: int, slots: int, queue: int) -> None:
        self.rows, self.queue = rows, queue
        self.lanes = {
            named.name: Lane(named, rows, min(slots, named.model.config.max_position_embeddings))
            for named in models
        }
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def submit(self, model: str, tickets: Sequence[Ticket]) -> None:
        """Queue requests, all or none of them.

        Raises:
            BusyError: the queue is full.
            ClosedError: the decoder is shutting down.
        """
        with self._changed:
            lane = self.lanes[model]
            if self._closing:
                raise ClosedError
            if len(lane.waiting) + len(lane.running) + len(tickets) > self.rows + self.queue:
                raise BusyError
            lane.waiting.extend(tickets)
            self._changed.notify()

    def cancel(self, tickets: Sequence[Ticket]) -> None:
        """Remove requests that have not ended; their rows are free at the next step."""
        with self._changed:
            for ticket in tickets:
                ticket.cancelled = True
            for lane in self.lanes.values():
                lane.waiting = deque(ticket for ticket in lane.waiting if not ticket.cancelled)
            self._changed.notify()

    def load(self) -> dict[str, dict[str, int]]:
        """Return the numbers of running and waiting answers, by model."""
        with self._changed:
            return {
                name: {"running": len(lane.running), "waiting": len(lane.waiting)}
                for name, lane in self.lanes.items()
            }

    def close(self) -> None:
        """Stop the thread after its current step; open requests end with ClosedError."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._work_or_end():
            for lane in self.lanes.values():
                try:
                    self._turn(lane)
                except Exception as error:  # a model's error ends its own requests, not the server
                    traceback.print_exc()
                    self._fail(lane, error)
        for lane in self.lanes.values():
            self._fail(lane, ClosedError())

    def _work_or_end(self) -> bool:
        """Wait for work; return False at shutdown."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closing
                    or any(lane.waiting or lane.running for lane in self.lanes.values())
                )
            )
            return not self._closing

    def _turn(self, lane: Lane) -> None:
        """Drop cancelled answers, read one prompt if a row is free, and do one step."""
        ended: list[tuple[Ticket, Completion]] = []
        with self._changed:
            for ticket in [ticket for ticket in lane.running if ticket.cancelled]:
                lane.running.remove(ticket)
                lane.batch.drop(ticket)
            new = lane.waiting.popleft() if lane.waiting and lane.batch.free else None
            if new:
                lane.running.append(new)
        if new and (completion := lane.batch.admit(new, new.request)):
            ended.append((new, completion))
        if len(lane.running) > len(ended):
            ended += lane.batch.step()  # type: ignore[arg-type]  # the keys are tickets
        answers: dict[Ticket, list[int]] = lane.batch.answers()  # type: ignore[assignment]
        for ticket, ids in answers.items():
            if ticket.on_tokens and not ticket.cancelled:
                ticket.on_tokens(list(ids))
        with self._changed:
            lane.running = [
                ticket for ticket in lane.running if all(ticket is not done for done, _ in ended)
            ]
        for ticket, completion in ended:
            if not ticket.cancelled:
                ticket.on_end(completion)

    def _fail(self, lane: Lane, error: Exception) -> None:
        with self._changed:
            tickets = [*lane.running, *lane.waiting]
            lane.waiting.clear()
            lane.clear()
        for ticket in tickets:
            if not ticket.cancelled:
                ticket.on_end(error)

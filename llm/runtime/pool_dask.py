"""The pool of llm/runtime/pool.py on a Dask cluster, for text that takes one machine too long.

DASK_SCHEDULER_ADDRESS names the scheduler; without it, Dask starts workers on this machine. All
machines need this project's environment and the same paths (a shared file system). If a worker
dies, the scheduler gives its items to others.
"""

from __future__ import annotations

import hashlib
import pickle
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from llm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items in flight for each thread of the cluster: one in work, one waiting
TIMEOUT = "30s"  # for the scheduler to answer
RETRIES = 3  # of an item whose worker died

_lock = threading.Lock()
_made: dict[str, Callable[[Any], Any]] = {}


def ordered(
    make: Callable[[], Callable[[Item], Result]], items: Iterable[Item]
) -> Iterator[Result]:
    """Yield function(item) for each item, in order.

    An error of the function is raised here when its item's turn comes.

    Args:
        make: returns the function; called once in each process of the cluster.
        items: the function's arguments.

    Raises:
        UserError: Dask is not installed, the scheduler does not answer, or an item repeatedly
            killed its worker.
    """
    try:
        import dask
        from distributed import Client, KilledWorker
    except ImportError:
        raise UserError(
            "tokenize.engine=dask needs the extra `scale`: pip install -c constraints.txt -e '.[scale]'."
        ) from None
    packed = pickle.dumps(make)
    key = hashlib.sha256(packed).hexdigest()
    address = dask.config.get("scheduler-address", None)
    try:
        client = Client(address, set_as_default=False, timeout=TIMEOUT)
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"the Dask scheduler at {address} (DASK_SCHEDULER_ADDRESS) does not answer: {error}"
        ) from None
    with client:
        function = client.scatter(packed, broadcast=True)
        room = max(1, sum(client.nthreads().values())) * AHEAD
        waiting: deque[Any] = deque()

        def next_result() -> Any:
            try:
                return waiting.popleft().result()
            except KilledWorker as error:
                raise UserError(
                    f"a part of the work ended {RETRIES + 1} workers of the Dask cluster, most likely for want of "
                    f"memory: give them more, or run fewer on a machine ({error})."
                ) from None

        for item in items:
            waiting.append(client.submit(_call, key, function, item, pure=False, retries=RETRIES))
            if len(waiting) >= room:
                yield next_result()
        while waiting:
            yield next_result()


def _call(key: str, packed: bytes, item: Any) -> Any:
    """Run in a worker: make the function once, and call it in one thread at a time."""
    with _lock:
        if key not in _made:
            _made.clear()
            _made[key] = pickle.loads(packed)()  # noqa: S301 (from this run's own process, over Dask's own channel)
        return _made[key](item)

"""A bounded, order-preserving map over threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice


def ordered_map(function: Callable, items: Iterable, workers: int, ahead: int) -> Iterator:
    """Yield function(item) of each item, in order, computed in threads.

    workers: number of threads; 0 computes in the calling thread. ahead: how many items may be in flight.
    An exception of function(item) is raised in the place of its result. Closing the iterator ends the threads.
    """
    if workers == 0:
        yield from map(function, items)
        return
    items = iter(items)
    pool = ThreadPoolExecutor(workers)
    try:
        pending = deque(pool.submit(function, item) for item in islice(items, ahead))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result
    finally:
        pool.shutdown(cancel_futures=True)

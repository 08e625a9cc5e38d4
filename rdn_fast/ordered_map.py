"""A bounded, order-preserving map over threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice


def ordered_map(function: Callable, items: Iterable, workers: int, ahead: int) -> Iterator:
    """Yield function(item) in order, computed by `workers` threads at most `ahead` items early; 0 workers: in this thread.

    The first exception of a call is raised where its result was due. Closing the iterator leaves no thread behind.
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

"""`overlap`: read, pool and write concurrently, each in order, in bounded memory.

Reading and writing have one thread each; pooling has several, each with an item of its own. At
most _AHEAD items wait for pooling, and n_threads + 1 for writing, so memory does not grow with
the number of items. All stages release the GIL while they work.

Pooling does not use OpenMP's threads: these spin until the next call, and would take processor
time from the other stages. docs/cli.md has measurements.

Tested in tests/cli/.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

STAGES = ("reading", "pooling", "writing")
_AHEAD = 2


def overlap(
    items: Iterator[_Item],
    pool: Callable[[_Item], _Result],
    write: Callable[[_Result], object],
    n_threads: int,
) -> dict[str, float]:
    """Call ``write(pool(item))`` for each item; return the seconds that each of STAGES worked.

    `n_threads` threads call `pool`; their seconds are summed. An error of any stage is raised
    here, and no further work starts.
    """
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}

    def timed(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds[stage].append(time.perf_counter() - start)

    reader, pooler, writer = map(ThreadPoolExecutor, (1, n_threads, 1), STAGES)
    coming: deque[Future[Any]] = deque()
    pooled: deque[Future[Any]] = deque()
    writing: Future[Any] = writer.submit(int)  # a placeholder

    def write_next() -> None:
        nonlocal writing
        result = pooled.popleft().result()
        writing.result()
        writing = writer.submit(timed, "writing", write, result)

    try:
        for _ in range(_AHEAD):
            coming.append(reader.submit(timed, "reading", next, items, None))
        while (item := coming.popleft().result()) is not None:
            coming.append(reader.submit(timed, "reading", next, items, None))
            pooled.append(pooler.submit(timed, "pooling", pool, item))
            if len(pooled) > n_threads:
                write_next()
        while pooled:
            write_next()
        writing.result()
    finally:
        # Work that has started must end before the caller closes its files.
        for executor in (reader, pooler, writer):
            executor.shutdown(cancel_futures=True)
    return {stage: sum(parts) for stage, parts in seconds.items()}

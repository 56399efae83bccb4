"""`overlap`: reading, pooling and writing at the same time, each in order, in bounded memory.

Reading and writing have a thread each, pooling has several, each on another item. At most
_AHEAD items wait to be pooled, and one more than there are threads to be written: memory is
that of some items, however many there are. All let go of the GIL while they are at work.

Pooling does not use OpenMP's threads, since those wait awake for the next call, and so would
take the processors from the other stages. Figures: docs/cli.md.

Tested in tests/test_cli_stages.py.
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
    """Call ``write(pool(item))`` for each item; return the seconds at work of each of STAGES.

    `pool` is called by `n_threads` threads; their seconds are added up. An error of any stage
    is raised here, and nothing is begun after that.
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
    writing: Future[Any] = writer.submit(int)  # done at once

    def hand_on() -> None:
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
                hand_on()
        while pooled:
            hand_on()
        writing.result()
    finally:
        # What has been begun ends first: the files that it is at are closed next.
        for executor in (reader, pooler, writer):
            executor.shutdown(cancel_futures=True)
    return {stage: sum(parts) for stage, parts in seconds.items()}

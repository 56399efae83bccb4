"""`overlap`: reading, pooling and writing at the same time, each in order, in bounded memory.

Reading and writing have a thread each, and the caller's does the pooling. At most
_AHEAD items wait before each of the two: so memory is that of a few items, however many
there are. All three let go of the GIL while they are at work.

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


class Stopwatch:
    """Adds up the seconds that a function takes."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self, function: Callable[..., _Result], *arguments: Any) -> _Result:
        """Call a function, and add its time."""
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.seconds += time.perf_counter() - start


def overlap(
    items: Iterator[_Item],
    pool: Callable[[_Item], _Result],
    write: Callable[[_Result], object],
) -> dict[str, float]:
    """Call ``write(pool(item))`` for each item; return the seconds of each of STAGES.

    An error of any stage is raised here, and no stage runs on after that.
    """
    reading, pooling, writing = Stopwatch(), Stopwatch(), Stopwatch()
    with ThreadPoolExecutor(1, "reading") as reader, ThreadPoolExecutor(1, "writing") as writer:
        coming: deque[Future[_Item | None]] = deque()
        going: deque[Future[object]] = deque()
        try:
            for _ in range(_AHEAD):
                coming.append(reader.submit(reading.time, next, items, None))
            while (item := coming.popleft().result()) is not None:
                coming.append(reader.submit(reading.time, next, items, None))
                result = pooling.time(pool, item)
                if len(going) == _AHEAD:
                    going.popleft().result()
                going.append(writer.submit(writing.time, write, result))
            for future in going:
                future.result()
        except BaseException:
            reader.shutdown(wait=False, cancel_futures=True)
            writer.shutdown(wait=False, cancel_futures=True)
            raise
    watches = reading, pooling, writing
    return {stage: watch.seconds for stage, watch in zip(STAGES, watches, strict=True)}

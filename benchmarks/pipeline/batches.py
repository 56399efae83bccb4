"""Read, pool and write: `python -m benchmarks.pipeline.batches POOL HOW EVENTS OUT`.

POOL is a key of `pools.POOLS`. HOW is "serial", one batch after the other, or "threads": one
thread reads ahead, another pools, and a third writes. All read and write with the settings of
`embag pool`. The seconds of each part are printed; with threads, the parts overlap.
"""

import json
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from queue import Queue
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.pipeline.pools import POOLS, VECTORS, Pool

# Vectors neither repeat nor compress.
PLAIN = {"use_dictionary": False, "compression": "none", "write_statistics": False}
N_BATCH = 65_536  # rows; the fastest of 16,384 to 131,072 for embag and torch
N_BUFFER = 1 << 20  # bytes; without a limit, pyarrow keeps the whole file in memory
N_WAITING = 2  # batches between two threads
Item = TypeVar("Item")


class Pipeline:
    def __init__(self, pool: Pool):
        self.pool = pool
        self.seconds = {"read": 0.0, "pool": 0.0, "write": 0.0}

    def run(self, events: Path, out: Path, in_threads: bool) -> None:
        ahead = _ahead if in_threads else iter
        self._write(ahead(self._pool(ahead(self._read(events)))), out)

    def _read(self, events: Path) -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(events, pre_buffer=False, buffer_size=N_BUFFER) as file:
            batches = file.iter_batches(N_BATCH)
            while (batch := self._timed("read", next, batches, None)) is not None:
                yield batch

    def _pool(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        for batch in batches:
            yield self._timed("pool", self.pool, batch)

    def _write(self, tables: Iterable[pa.Table], out: Path) -> None:
        with pq.ParquetWriter(out, VECTORS, **PLAIN) as writer:
            for table in tables:
                self._timed("write", writer.write_table, table)

    def _timed(self, part, function, *arguments):  # type: ignore[no-untyped-def]
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[part] += time.perf_counter() - start
        return result


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items that another thread makes ahead of time."""
    queue: Queue[Item | BaseException | None] = Queue(N_WAITING)

    def make() -> None:
        try:
            for item in items:
                queue.put(item)
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    threading.Thread(target=make, daemon=True).start()
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        yield item


def main(pool: str, how: str, events: Path, out: Path) -> None:
    start = time.perf_counter()
    pipeline = Pipeline(POOLS[pool](events.parent))
    seconds = {"table": time.perf_counter() - start}
    pipeline.run(events, out, in_threads=how == "threads")
    print(json.dumps(seconds | pipeline.seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))

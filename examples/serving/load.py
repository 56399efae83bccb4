"""Put load on a running service: each connection sends a request after each answer.

    python load.py --port 8000 --connections 8 --requests 10000

Requests are written without an HTTP library: httpx takes 1.2 ms per request, and the service
0.3 ms.
"""

import argparse
import asyncio
import json
import re
import time
from typing import NamedTuple

import make_tables
import numpy as np


class Load(NamedTuple):
    p50_ms: float
    p99_ms: float
    per_second: float
    lookup_ms: float  # of a request, as the service measures it
    dense_ms: float
    scores: list[float]
    max_ms: float
    n_failed: int
    latencies_ms: np.ndarray


async def load(port, bodies, connections, may_fail=False):
    """Send all bodies (bytes of JSON) to the service on loopback.

    A request that fails raises RuntimeError, or is counted and has the score NaN, if it may fail.
    """
    waiting = list(enumerate(bodies))[::-1]
    latencies, timings, scores = [], [], [np.nan] * len(bodies)

    async def ask():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while waiting:
            i, body = waiting.pop()
            start = time.perf_counter()
            writer.write(
                b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            answer = await reader.readexactly(int(re.search(r"content-length: (\d+)", head)[1]))
            latencies.append(time.perf_counter() - start)
            if " 200 " in head.partition("\r\n")[0]:
                timings.append([float(number) for number in re.findall(r"dur=([\d.]+)", head)])
                scores[i] = json.loads(answer)["score"]
            elif not may_fail:
                raise RuntimeError(answer.decode())
        writer.close()
        await writer.wait_closed()

    start = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(connections)))
    seconds = time.perf_counter() - start
    latencies_ms = np.array(latencies) * 1e3
    p50, p99, longest = np.percentile(latencies_ms, [50, 99, 100])
    lookup_ms, dense_ms = np.median(timings, axis=0) if timings else (np.nan, np.nan)
    n_failed = len(bodies) - len(timings)
    per_second = len(bodies) / seconds
    return Load(
        *(p50, p99, per_second, lookup_ms, dense_ms, scores, longest, n_failed, latencies_ms)
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    args = parser.parse_args()
    bodies = [
        json.dumps(user).encode() for user in make_tables.make_requests(args.requests, args.rows)
    ]
    result = asyncio.run(load(args.port, bodies, args.connections))
    print(f"p50 {result.p50_ms:.2f} ms, p99 {result.p99_ms:.2f} ms, ", end="")
    print(f"{result.per_second:.0f} requests per second; in the service ", end="")
    print(
        f"{result.lookup_ms * 1e3:.0f} us of lookup, {result.dense_ms * 1e3:.0f} us of dense part"
    )

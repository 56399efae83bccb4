"""Measure the service over sharded tables beside that of one machine: the figures of README.md.

    python compare.py model    # a folder of ../serving/make_tables.py; needs the extra `serving`

Both serve the same files on this machine and take turns, so that other work affects both. The
sharded tables are on three nodes of Ray. Figures are medians over rounds, of requests whose scores
are right.
"""

import argparse
import asyncio
from pathlib import Path

import demo  # also lets Python find the modules of ../serving
import make_tables
import numpy as np
import service
from measure import running

CONNECTIONS = [1, 8, 32]


def figures(port, users, connections, expected):
    """Return p50 and p99 in ms, and requests per second."""
    result = asyncio.run(demo.send(port, users, connections))
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-5)
    return result.p50_ms, result.p99_ms, result.per_second


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=100_000, help="of each table")
    parser.add_argument("--requests", type=int, default=500, help="of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8123)
    args = parser.parse_args()
    folder = args.folder.absolute()
    users = make_tables.make_requests(args.requests, args.rows)
    expected = demo.Local(folder).scores(users)
    with (
        demo.running_nodes(),
        service.make_collection(folder) as ebc,
        running("app", folder) as (port, _),
    ):
        service.start(ebc, folder, args.port)
        ports = {"one machine": port, "three nodes": args.port}
        for one in ports.values():
            figures(one, users, 8, expected)  # ready for the first round then
        rounds = [
            [figures(one, users, n, expected) for n in CONNECTIONS for one in ports.values()]
            for _ in range(args.rounds)
        ]
    rows = iter(np.median(rounds, axis=0))
    print("| connections | service | p50 / p99, ms | requests per second |\n|--:|---|--:|--:|")
    for n in CONNECTIONS:
        for name in ports:
            p50, p99, per_second = next(rows)
            print(f"| {n} | {name} | {p50:.2f} / {p99:.1f} | {per_second:.0f} |")


if __name__ == "__main__":
    main()

"""Percentiles of the latency of examples/serving: `python -m benchmarks.latency`, from the root.

The service runs on the first processor and the load on the second. The services of embag and, if
it is installed, of torch take turns, over the same files of 8 bits. Their scores are compared
first. The percentiles are those of all requests of all rounds.

`--publish` writes `results/latency-KEY.json`, KEY being the processor. `--quick` is for tests. It
needs the extra `serving`, and Linux.
"""

import argparse
import asyncio
import contextlib
import importlib
import importlib.util
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine, published

EXAMPLE = Path("examples/serving")
SERVICES = {"embag": "app", "torch": "app_torch"}
PERCENTILES = (50, 75, 90, 95, 99, 99.5, 99.9)
CONNECTIONS = (1, 8)


def measure(n_rounds: int, n_requests: int, n_rows: int) -> list[dict[str, Any]]:
    sys.path.insert(0, str(EXAMPLE))
    load, make_tables, running = (
        importlib.import_module(module) for module in ("load", "make_tables", "measure")
    )
    bodies = [json.dumps(user).encode() for user in make_tables.make_requests(n_requests, n_rows)]
    names = [name for name in SERVICES if importlib.util.find_spec(name)]
    latencies: dict[tuple[str, int], list[Any]] = {
        (name, connections): [] for name in names for connections in CONNECTIONS
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        make_tables.make(Path(folder), n_rows)
        ports = {
            name: stack.enter_context(running.running(SERVICES[name], Path(folder), core=0))[0]
            for name in names
        }
        os.sched_setaffinity(0, {1})
        scores = [asyncio.run(load.load(port, bodies, 1)).scores for port in ports.values()]
        for others in scores[1:]:
            np.testing.assert_allclose(others, scores[0], rtol=1e-3, atol=1e-3)
        for _ in range(n_rounds):
            for (name, connections), found in latencies.items():
                result = asyncio.run(load.load(ports[name], bodies, connections))
                found.append(result.latencies_ms)
    return [
        {
            "service": name,
            "connections": connections,
            "requests": sum(map(len, found)),
            "ms": dict(
                zip(
                    map(str, PERCENTILES),
                    np.percentile(np.concatenate(found), PERCENTILES).tolist(),
                    strict=True,
                )
            ),
        }
        for (name, connections), found in latencies.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--publish", action="store_true", help="write them to results/")
    parser.add_argument("--quick", action="store_true", help="a few requests, small tables")
    arguments = parser.parse_args()
    results = machine.facts() | {"settings": {"quick": arguments.quick}}
    results["latency"] = measure(1, 20, 100) if arguments.quick else measure(9, 3000, 100_000)
    for line in results["latency"]:
        print(line)
    text = json.dumps(results, indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    if arguments.publish:
        (published.FOLDER / f"latency-{results['machine']['key']}.json").write_text(text)


if __name__ == "__main__":
    main()

"""Measure embag's service and torch's, side by side, and print the tables of README.md.

    python measure.py folder    # makes the tables there; needs Linux, torch and safetensors

The services run on the first core, the load on the second. The services take turns, so that
other work on the machine affects all of them. The figures are medians over rounds.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import make_tables
import numpy as np
from load import load

HERE = Path(__file__).parent
SERVICES = {
    "embag, 8 bits": ("app", "8-bits"),
    "torch, 8 bits": ("app_torch", "8-bits"),
    "embag, float32": ("app", "float32"),
    "torch, float32": ("app_torch", "float32"),
}


@contextlib.contextmanager
def running(app, folder, workers=1, core=None, seconds_to_start=60):
    """Run a service on a free port; yield the port and the ids of the worker processes."""
    command = [sys.executable, "-m", "uvicorn", f"{app}:create", "--factory", "--port", "0"]
    command += ["--no-access-log", "--no-use-colors", "--workers", str(workers)]
    process = subprocess.Popen(
        command if core is None else ["taskset", "-c", str(core), *command],
        cwd=HERE,
        env=os.environ | {"MODEL": str(folder.absolute()), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = threading.Timer(seconds_to_start, process.kill)
    deadline.start()
    # Reads the log once the service runs: a full pipe would block it.
    reader = threading.Thread(target=process.stderr.read)
    try:
        log = ""
        while log.count("startup complete") < workers or "running on" not in log:
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"the service has not started:\n{log}")
            log += line
        deadline.cancel()
        reader.start()
        pids = [int(pid) for pid in re.findall(r"Started server process \[(\d+)\]", log)]
        yield int(re.search(r"running on http://[\d.]+:(\d+)", log)[1]), pids
    finally:
        deadline.cancel()
        process.terminate()
        if reader.is_alive():
            reader.join()
        process.communicate()


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def megabytes(pid):
    """Return the resident memory of a process, and its proportional share (PSS)."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return [int(re.search(rf"^{key}: +(\d+) kB", text, re.M)[1]) / 1024 for key in ("Rss", "Pss")]


def check_answers(ports, bodies):
    scores = {name: asyncio.run(load(port, bodies, 1)).scores for name, port in ports.items()}
    for tables in ("8 bits", "float32"):
        ours, torchs = scores[f"embag, {tables}"], scores[f"torch, {tables}"]
        np.testing.assert_allclose(ours, torchs, rtol=1e-3, atol=1e-3)
    spread = np.std(scores["embag, float32"])
    error = np.std(np.subtract(scores["embag, 8 bits"], scores["embag, float32"]))
    assert error < 0.02 * spread
    print(f"Same scores; 8 bits are {error / spread:.2%} of their standard deviation off.\n")


def measure_speed(folder, bodies, n_rounds):
    rounds = {name: [] for name in SERVICES}
    with contextlib.ExitStack() as stack:
        services = {
            name: stack.enter_context(running(app, folder / tables, core=0))
            for name, (app, tables) in SERVICES.items()
        }
        check_answers({name: port for name, (port, _) in services.items()}, bodies[:1000])
        for _ in range(n_rounds):
            for name, (port, [pid]) in services.items():
                alone = asyncio.run(load(port, bodies, 1))
                start = cpu_seconds(pid)
                busy = asyncio.run(load(port, bodies, 8))
                cpu_us = (cpu_seconds(pid) - start) / len(bodies) * 1e6
                lookup_us, dense_us = busy.lookup_ms * 1e3, busy.dense_ms * 1e3
                rounds[name].append(
                    [
                        *(alone.p50_ms, alone.p99_ms, busy.p50_ms, busy.p99_ms, busy.per_second),
                        *(1e6 / cpu_us, cpu_us, lookup_us, dense_us, cpu_us - lookup_us - dense_us),
                    ]
                )
    figures = {name: np.array(values) for name, values in rounds.items()}
    print("| | p50 / p99, 1 connection, ms | 8 connections, ms | requests per second ", end="")
    print("| per second of CPU | CPU, us per request | lookup | dense part | HTTP and JSON |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|--:|")
    for name, values in figures.items():
        a50, a99, b50, b99, *rest = np.median(values, axis=0)
        print(f"| {name} | {a50:.2f} / {a99:.1f} | {b50:.2f} / {b99:.1f} | ", end="")
        print(*(f"{number:.0f}" for number in rest), sep=" | ", end=" |\n")
    for tables in ("8 bits", "float32"):
        ratios = figures[f"embag, {tables}"] / figures[f"torch, {tables}"]
        per_cpu, lookup = np.median(ratios, axis=0)[[5, 7]]
        print(f"\n{tables}: {per_cpu:.2f} times torch's requests per second of CPU, ", end="")
        print(f"the lookup in {lookup:.2f} of its time (medians of the rounds' ratios).")


def measure_memory(folder, bodies):
    print("\n| MB per worker: resident / in shares | 1 worker | 2 workers |\n|---|--:|--:|")
    for name, (app, tables) in SERVICES.items():
        cells = []
        for workers in (1, 2):
            with running(app, folder / tables, workers) as (port, pids):
                asyncio.run(load(port, bodies, 16))
                rss, pss = np.mean([megabytes(pid) for pid in pids], axis=0)
            cells.append(f"{rss:.0f} / {pss:.0f}")
        print(f"| {name} | {cells[0]} | {cells[1]} |")


def main(folder, n_rounds=9, n_requests=3000, n_rows=100_000):
    for tables in ("8-bits", "float32"):
        make_tables.make(folder / tables, n_rows, float32=tables == "float32")
    users = make_tables.make_requests(n_requests, n_rows)
    bodies = [json.dumps(user).encode() for user in users]
    cores = os.sched_getaffinity(0)
    measure_memory(folder, bodies)
    os.sched_setaffinity(0, {1})
    try:
        measure_speed(folder, bodies, n_rounds)
    finally:
        os.sched_setaffinity(0, cores)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    main(args.folder, args.rounds)

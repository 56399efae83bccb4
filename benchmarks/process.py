"""What embag does to its process: `python -m benchmarks.process`, from the root.

threads    two threads against one, in turn, on the largest workload
import     what `import embag` adds to `import numpy`, in fresh processes, in turn
memory     what a call takes beside its output, for an input and for one ten times as long

Each figure has its target beside it. `--json FILE` writes them all.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contenders import Embag
from benchmarks.run import median_ratio
from benchmarks.worker import ROOT, Worker
from benchmarks.workloads import Batch, Workload, assert_result, make_batches

SPEEDUP_TARGET = 1.7
IMPORT_TARGET_MS = 20
# More than the interpreter's own comings and goings; 80 times less than the longer input.
MEMORY_TARGET_BYTES = 400_000

TIMED_IMPORT = """
import time
start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""
MEMORY_CASES: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"mode": "mean"},
    "max": {"mode": "max"},
    "padding_idx": {"padding_idx": 0},
    "per_sample_weights": {"weighted": True},
    "two threads": {"n_threads": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.process", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    arguments = parser.parse_args()

    results = machine.facts()
    results["settings"] = {"quick": arguments.quick}
    results["threads"] = measure_threads(arguments.quick)
    show("two threads: times as fast as one", results["threads"])
    results["import"] = measure_import(3 if arguments.quick else 31)
    show("import: ms beside NumPy's", results["import"])
    results["memory"] = measure_memory(arguments.quick)
    for name, figures in results["memory"].items():
        show(f"memory, {name}: bytes beside the output", figures)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def show(title: str, figures: dict[str, Any]) -> None:
    print(f"{title}: {figures['result']:,.4g}, target {figures['target']:,}", flush=True)


def measure_threads(quick: bool) -> dict[str, Any]:
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with (
        closing(Worker("sum-d64-2m", "embag", 1, quick)) as one,
        closing(Worker("sum-d64-2m", "embag", 2, quick)) as two,
    ):
        for _ in range(2 if quick else 31):
            seconds[1].append(one.seconds())
            seconds[2].append(two.seconds())
    return {
        "result": median_ratio(seconds[1], seconds[2]),
        "target": SPEEDUP_TARGET,
        "cores": os.cpu_count(),
        "seconds": seconds,
    }


def measure_import(n_rounds: int) -> dict[str, Any]:
    def milliseconds(package: str) -> float:
        command = [sys.executable, "-c", TIMED_IMPORT.format(package)]
        run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
        return float(run.stdout) * 1e3

    milliseconds("embag")  # fills the system's file cache
    numpy, embag = [], []
    for _ in range(n_rounds):
        numpy.append(milliseconds("numpy"))
        embag.append(milliseconds("embag"))
    return {
        "result": statistics.median(e - n for n, e in zip(numpy, embag, strict=True)),
        "target": IMPORT_TARGET_MS,
        "numpy": statistics.median(numpy),
        "embag": statistics.median(embag),
    }


def measure_memory(quick: bool) -> dict[str, Any]:
    n_bags, bag_size = (1000, 10) if quick else (10_000, 40)
    results = {}
    for name in MEMORY_CASES:
        short = _in_fresh_process(name, n_bags, bag_size)
        long = _in_fresh_process(name, n_bags, 10 * bag_size)
        results[name] = {
            "result": max(long["traced"], long["resident"]),
            "target": MEMORY_TARGET_BYTES,
            "input": short,
            "input ten times as long": long,
        }
    return results


def _in_fresh_process(*arguments: str | int) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.process", "one_call", *map(str, arguments)]
    # A fixed threshold: glibc raises its own as arrays are freed, and what it then keeps
    # could serve the call unseen.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(run.stdout)


def one_call(name: str, n_bags: int, bag_size: int) -> dict[str, int]:
    """Measure one call in this process, twice; then assert its result.

    `traced` is what Python and NumPy allocate at their peak, `resident` how far the
    process's memory rises, whoever allocated it. Both less the output.
    """
    options = dict(MEMORY_CASES[name])
    n_threads = options.pop("n_threads", 1)
    workload = Workload(name, name, 10_000, 64, n_bags, bag_size, n_batches=1, **options)
    contender = Embag(workload, n_threads)
    (batch,) = make_batches(workload)
    call = [contender.convert(batch)]
    # A call of a tenth of the size, for what is set up once: threads and their stacks.
    n_first = n_bags // 10 * bag_size
    weights = None if batch.sample_weights is None else batch.sample_weights[:n_first]
    first = Batch(batch.indices[:n_first], batch.offsets[: n_bags // 10], weights)
    contender.run([contender.convert(first)])

    before = _restart_peak()
    result = contender.run(call)
    resident = _resident_peak() - before - result.nbytes
    assert_result(workload, contender.table, batch, result)
    n_bytes = result.nbytes
    del result
    tracemalloc.start()
    contender.run(call)
    traced = tracemalloc.get_traced_memory()[1] - n_bytes
    return {
        "traced": traced,
        "resident": resident,
        "output": n_bytes,
        "indices": batch.indices.nbytes,
    }


def _restart_peak() -> int:
    """Set the system's record of this process's peak to its present size; return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident_peak()


def _resident_peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status does not tell the peak of resident memory")


if __name__ == "__main__":
    if sys.argv[1:2] == ["one_call"]:
        print(json.dumps(one_call(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
    else:
        main()

"""Threads, import time and memory: `python -m benchmarks.callers.process`, from the root.

threads    the speedup of two threads over one, for the largest forward pass and for sparse
           gradients
import     the time that `import embag` adds to `import numpy`, in fresh processes
memory     the memory of a call beside its output, for an input and one ten times as long
gradients  the memory of a sparse gradient beside the result, per index and per row in use
tables     the memory of a process per row of a table that it serves, for embag and torch

Each figure is printed with its target. `--json FILE` writes all of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.child import ROOT
from benchmarks.operations.contenders import CONTENDERS, Contender
from benchmarks.operations.worker import Worker
from benchmarks.operations.workloads import Batch, Workload, make_batches
from benchmarks.run import median_ratio

SPEEDUP_TARGETS = {"sum-d64-2m": 1.7, "sparse-sum-d64-1m": 1.6, "sparse-zipf-d64-1m": 1.6}
IMPORT_TARGET_MS = 20
# More than the fluctuations of the interpreter, and 80 times less than the longer input.
MEMORY_TARGET_BYTES = 400_000

TIMED_IMPORT = """
import time
start = time.perf_counter()
import {}
print(time.perf_counter() - start)
"""
HUGE_PAGE_BYTES = 2 << 20
DIM = 64
MEMORY_CASES: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"mode": "mean"},
    "max": {"mode": "max"},
    "padding_idx": {"padding_idx": 0},
    "per_sample_weights": {"weighted": True},
    "two threads": {"n_threads": 2},
}
GRADIENT_CASES: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"mode": "mean"},
    "per_sample_weights": {"weighted": True},
    "two threads": {"n_threads": 2},
}
# The formats of tables, and the kind of workload for each.
TABLE_KINDS = {
    "float32": "forward",
    "float16": "forward",
    "int8": "quantized",
    "int4": "quantized",
    "int2": "quantized",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.callers.process", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()

    results = machine.facts()
    results["settings"] = {"quick": arguments.quick}
    results["threads"] = measure_threads(arguments.quick)
    for name, figures in results["threads"].items():
        show(f"two threads, {name}: times as fast as one", figures)
    results["import"] = measure_import(3 if arguments.quick else 31)
    show("import: ms in addition to NumPy", results["import"])
    results["memory"] = measure_memory(arguments.quick)
    for name, figures in results["memory"].items():
        show(f"memory, {name}: bytes beside the output", figures)
    results["gradients"] = measure_gradients(arguments.quick)
    for name, figures in results["gradients"].items():
        show(f"memory, sparse gradient, {name}: bytes beside the result", figures)
        for unit in ("beside, per index", "in all, per row in use"):
            print(f"    {unit}: {figures[unit]:.1f}")
    results["tables"] = measure_tables(arguments.quick)
    for name, figures in results["tables"].items():
        show(f"memory, a table of {name}: embag, bytes", figures)
        for contender, n_bytes in figures["bytes per row"].items():
            print(f"    {contender}, bytes per row: {n_bytes:.1f}")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def show(title: str, figures: dict[str, Any]) -> None:
    print(f"{title}: {figures['result']:,.4g}, target {figures['target']:,}", flush=True)


def measure_threads(quick: bool) -> dict[str, Any]:
    results = {}
    for workload, target in SPEEDUP_TARGETS.items():
        seconds: dict[int, list[float]] = {1: [], 2: []}
        with (
            closing(Worker(workload, "embag", 1, quick)) as one,
            closing(Worker(workload, "embag", 2, quick)) as two,
        ):
            for _ in range(2 if quick else 31):
                seconds[1].append(one.seconds())
                seconds[2].append(two.seconds())
        results[workload] = {
            "result": median_ratio(seconds[1], seconds[2]),
            "target": target,
            "cores": os.cpu_count(),
            "seconds": seconds,
        }
    return results


def measure_import(n_rounds: int) -> dict[str, Any]:
    def milliseconds(package: str) -> float:
        command = [sys.executable, "-c", TIMED_IMPORT.format(package)]
        # If this were set, each import would compile the sources of the package.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
        run = subprocess.run(
            command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True
        )
        return float(run.stdout) * 1e3

    milliseconds("embag")  # fills the page cache
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
    for name, case in MEMORY_CASES.items():
        options = {"name": name, "n_rows": 10_000, "n_bags": n_bags, **case}
        short = _in_fresh_process(one_call, bag_size=bag_size, **options)
        long = _in_fresh_process(one_call, bag_size=10 * bag_size, **options)
        results[name] = {
            "result": max(long["traced"], long["resident"]),
            "target": MEMORY_TARGET_BYTES,
            "input": short,
            "input ten times as long": long,
        }
    return results


def measure_gradients(quick: bool) -> dict[str, Any]:
    """Measure sparse gradients with few and with many rows in use."""
    n_bags, bag_size = (1000, 10) if quick else (10_000, 40)
    n_indices = n_bags * bag_size
    results = {}
    for name, case in GRADIENT_CASES.items():
        options = {"name": name, "kind": "backward", "gradient": "sparse", **case}
        options |= {"n_bags": n_bags, "bag_size": bag_size}
        for n_rows in (1000, 10_000 if quick else 1_000_000):
            call = _in_fresh_process(one_call, n_rows=n_rows, **options)
            beside, n_used = max(call["traced"], call["resident"]), call["rows in use"]
            # The bound that `embedding_bag_backward` documents.
            target = (24 if "weighted" in case else 16) * n_indices + 16 * n_used
            target += 4 * n_bags * DIM if "mode" in case else 0
            results[f"{name}, {n_used} rows in use"] = {
                "result": beside,
                "target": target + MEMORY_TARGET_BYTES,
                "beside, per index": beside / n_indices,
                "in all, per row in use": (beside + call["output"]) / n_used,
                "call": call,
            }
    return results


def measure_tables(quick: bool) -> dict[str, Any]:
    """Measure the resident memory of a table, in the form that each contender uses."""
    n_rows = 100_000 if quick else 1_000_000
    results = {}
    for dtype, kind in TABLE_KINDS.items():
        options = {"name": dtype, "n_rows": n_rows, "dtype": dtype, "kind": kind}
        n_bytes = {
            contender: _in_fresh_process(one_table, contender=contender, **options)["resident"]
            for contender in ("embag", "torch")
            if CONTENDERS[kind][contender].missing() is None
        }
        rows = n_rows * Workload(title="", dim=DIM, **options).row_bytes
        results[dtype] = {
            "result": n_bytes["embag"],
            "target": rows + HUGE_PAGE_BYTES + MEMORY_TARGET_BYTES,
            "rows": rows,
            "bytes per row": {contender: n / n_rows for contender, n in n_bytes.items()},
        }
    return results


def _in_fresh_process(function: Callable[..., Any], **options: Any) -> dict[str, int]:
    """Run `one_call` or `one_table` in a process of its own; return its figures."""
    name = function.__name__
    command = [sys.executable, "-m", "benchmarks.callers.process", name, json.dumps(options)]
    # A fixed threshold: glibc raises its own as arrays are freed, and could then serve the call
    # from memory that it has kept, which would not be measured.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run(
        command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(run.stdout)


def one_call(name: str, n_threads: int = 1, **options: Any) -> dict[str, int]:
    """Measure one call in this process, twice, and check its result.

    `traced` is the peak of what Python and NumPy allocate, `resident` the rise of the resident
    memory of the process. Both exclude the output.
    """
    workload = Workload(name, name, dim=DIM, n_batches=1, **options)
    contender = CONTENDERS[workload.kind]["embag"](workload, n_threads)
    (batch,) = make_batches(workload)
    call = [contender.convert(batch)]
    # A call with a tenth of the indices, for everything that is set up once, such as threads.
    n_first = len(batch.indices) // 10
    weights = None if batch.sample_weights is None else batch.sample_weights[:n_first]
    first = Batch(batch.indices[:n_first], np.minimum(batch.offsets, n_first), weights)
    contender.run([contender.convert(first)])

    before = _restart_peak()
    result = contender.run(call)
    resident = _resident("VmHWM") - before
    contender.assert_result(batch, result)
    outputs = result if isinstance(result, tuple) else (result,)
    n_bytes = sum(output.nbytes for output in outputs if output is not None)
    del result, outputs
    tracemalloc.start()
    contender.run(call)
    traced = tracemalloc.get_traced_memory()[1] - n_bytes
    return {
        "traced": traced,
        "resident": resident - n_bytes,
        "output": n_bytes,
        "indices": batch.indices.nbytes,
        "rows in use": len(np.unique(batch.indices)),
    }


def one_table(contender: str, **options: Any) -> dict[str, int]:
    """Measure by how much this process grows when a table is made and used for a lookup.

    Temporary memory, such as the floats that a quantized table is made of, has been freed then.
    """
    workload = Workload(title="", dim=DIM, n_batches=1, **options)
    make = CONTENDERS[workload.kind][contender]
    small = make(replace(workload, n_rows=1000), 1)  # for everything that is set up once
    _look_up(small)
    before = _resident("VmRSS")
    served = make(workload, 1)
    _look_up(served)
    return {"resident": _resident("VmRSS") - before}


def _look_up(contender: Contender) -> None:
    (batch,) = make_batches(contender.workload)
    contender.check(batch)


def _restart_peak() -> int:
    """Reset the recorded peak memory of this process to the current size; return that size."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident("VmHWM")


def _resident(field: str) -> int:
    """Return the resident memory of this process: "VmRSS" is the current one, "VmHWM" the peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status must have the field {field}")


if __name__ == "__main__":
    functions = {function.__name__: function for function in (one_call, one_table)}
    if sys.argv[1:] and sys.argv[1] in functions:
        print(json.dumps(functions[sys.argv[1]](**json.loads(sys.argv[2]))))
    else:
        main()

"""One contender on one workload, in a process of its own, started by `Worker`.

The process makes its inputs, checks its results, and writes a line of facts. Then, for each line
on its standard input, it computes one round and writes the seconds. A waiting process uses no
processor time, so several can run in turn.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.operations.contenders import CONTENDERS
from benchmarks.operations.workloads import get_workload, make_batches

ROOT = Path(__file__).resolve().parents[2]
THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "NUMBA")


class Worker:
    """A child process for a contender; the constructor returns when it is ready."""

    def __init__(self, workload: str, contender: str, n_threads: int = 1, quick: bool = False):
        self.name = f"{contender} at {workload}"
        variables = {f"{name}_NUM_THREADS": str(n_threads) for name in THREAD_VARIABLES}
        arguments = [workload, contender, str(n_threads), *(["quick"] if quick else [])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.operations.worker", *arguments],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.facts: dict[str, Any] = self._read()

    def seconds(self) -> float:
        """Run one round in the child; return its seconds."""
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def _read(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} failed with status {self.process.wait()}")
        return json.loads(line)


def main(workload_name: str, contender_name: str, n_threads: int, quick: bool) -> None:
    """Run in the child."""
    workload = get_workload(workload_name, quick)
    contender = CONTENDERS[workload.kind][contender_name](workload, n_threads)
    batches = make_batches(workload)
    for batch in (batches[0], batches[-1]):
        contender.check(batch)

    calls = [contender.convert(batch) for batch in batches]
    contender.settle(calls)
    calls *= workload.passes
    # Untimed calls wake up the processor. They are the last calls of the round, so their rows
    # have left the caches when they are timed.
    warm_up = calls[-max(1, len(calls) // 32) :]
    n_indices = workload.passes * sum(contender.count_rows(batch) for batch in batches)
    facts = {"n_calls": len(calls), "n_indices": n_indices, "note": contender.note}
    print(json.dumps(facts), flush=True)
    for _ in sys.stdin:
        contender.run(warm_up)
        start = time.perf_counter()
        contender.run(calls)
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:] == ["quick"])

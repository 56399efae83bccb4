"""One contender on one workload, in a process of its own, started by `Worker`.

The process makes its inputs, checks its results, and writes a line of facts. Then, for each line
on its standard input, it computes one round and writes the seconds. A waiting process uses no
processor time, so several can run in turn.
"""

import json
import os
import sys
import time
from typing import Any

from benchmarks.child import Child
from benchmarks.operations.contenders import CONTENDERS
from benchmarks.operations.workloads import get_workload, make_batches

THREAD_VARIABLES = ("OMP", "MKL", "OPENBLAS", "NUMBA")


class Worker(Child):
    """A child process for a contender; the constructor returns when it is ready."""

    def __init__(self, workload: str, contender: str, n_threads: int = 1, quick: bool = False):
        variables = {f"{name}_NUM_THREADS": str(n_threads) for name in THREAD_VARIABLES}
        super().__init__(
            f"{contender} at {workload}",
            "benchmarks.operations.worker",
            [workload, contender, str(n_threads), *(["quick"] if quick else [])],
            {**os.environ, **variables},
        )
        self.facts: dict[str, Any] = self.answer()

    def seconds(self) -> float:
        """Run one round in the child; return its seconds."""
        self.ask("run")
        return self.answer()


def main(workload_name: str, contender_name: str, n_threads: int, quick: bool) -> None:
    """Run in the child."""
    workload = get_workload(workload_name, quick)
    contender = CONTENDERS[workload.kind][contender_name](workload, n_threads)
    batches = make_batches(workload)
    contender.check_all((batches[0], batches[-1]))

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

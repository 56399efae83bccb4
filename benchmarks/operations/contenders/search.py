"""Search for the fastest of several strategies, in turn, on the batches of the workload."""

import time
from collections.abc import Sequence
from typing import Any

from benchmarks.operations.contenders.base import Contender

# How often each strategy is timed, and how many are left then. The least time counts: other
# programs only ever add to it.
ROUNDS = ((2, 16), (4, 4), (8, 1))


class Search(Contender):
    """Base of contenders that do the same in several ways, of which `settle` finds the fastest.

    Strategies are (into L1, rows ahead, rows at once), as `embag._kernels.strategies` has them.
    """

    strategies: list[Any]

    def use(self, strategy: Any) -> None:
        raise NotImplementedError

    def settle(self, calls: Sequence[Any]) -> None:
        """Find the fastest strategy; the note has its name."""
        left = list(self.strategies)
        seconds: dict[Any, list[float]] = {strategy: [] for strategy in left}
        for n_rounds, n_left in ROUNDS:
            for _ in range(n_rounds):
                for strategy in left:
                    self.use(strategy)
                    start = time.perf_counter()
                    self.run(calls)
                    seconds[strategy].append(time.perf_counter() - start)
            left = sorted(left, key=lambda one: min(seconds[one]))[:n_left]
        self.use(left[0])
        self.note = self.name_of(left[0])

    def name_of(self, strategy: Any) -> str:
        near, ahead, burst = strategy
        if ahead == 0:
            return "none"
        return f"{'L1' if near else 'L2'}:{ahead}" + (f":{burst}" if burst else "")

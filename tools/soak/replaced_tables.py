"""A collection whose tables one thread replaces while others call it.

The states of the collection are numbered. A result must be that of one state, at least as new as
the last one that was complete when the call started.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import embag
from tools.soak.contents import MODES, Request
from tools.soak.harness import Job, Timer, WrongResultError


class Tables:
    """A collection whose tables one thread replaces in turn while others call it.

    `make_table(number, version)` returns a table after `version` swaps.
    """

    def __init__(self, n_tables: int, make_table: Callable[[int, int], Any]) -> None:
        self.n_tables, self.make_table = n_tables, make_table
        self.ebc = embag.EmbeddingBagCollection(
            {f"table_{i}": make_table(i, 0) for i in range(n_tables)},
            [embag.Feature(f"feature_{i}", f"table_{i}", MODES[i % 3]) for i in range(n_tables)],
            invalid="skip",
        )
        self.n_begun = self.n_complete = 0  # swaps
        self.n_sent: list[np.ndarray] = []  # ids out of range, for each job by feature

    def swap(self, timer: Timer) -> None:
        number, version = self.n_begun % self.n_tables, self.n_begun // self.n_tables + 1
        table = self.make_table(number, version)
        self.n_begun += 1
        with timer:
            self.ebc.replace(f"table_{number}", table)
        self.n_complete += 1

    def job(self, kind: str, requests: list[Request], call: Callable[[Any, Request], Any]) -> Job:
        """Return a job that makes these requests in turn, by `call(collection, request)`."""
        n_sent = np.zeros(self.n_tables, np.int64)
        self.n_sent.append(n_sent)
        turn = itertools.cycle(requests)

        def work(timer: Timer) -> None:
            request = next(turn)
            oldest = self.n_complete
            with timer:
                result = call(self.ebc, request)
            n_sent[:] += request.n_invalid
            self.check(timer, result, request, range(oldest, self.n_begun + 1))

        return Job(kind, work)

    def check(self, timer: Timer, result: np.ndarray, request: Request, states: range) -> None:
        for n_swaps in states:
            versions = [(n_swaps - i - 1) // self.n_tables + 1 for i in range(self.n_tables)]
            if np.array_equal(result, request.expected(versions)):
                timer.n_values += result.size
                return
        raise WrongResultError(f"not that of a state of the tables, {states[0]} to {states[-1]}")

    def problems(self) -> list[str]:
        seen, sent = list(self.ebc.n_invalid.values()), sum(self.n_sent).tolist()
        return [] if seen == sent else [f"ids out of range: {sent} sent, {seen} counted"]


def end_to_end(ebc: Any, request: Request) -> np.ndarray:
    return ebc(request.ids, request.offsets)


def by_name(ebc: Any, request: Request) -> np.ndarray:
    return ebc(request.named)

"""Training: after each step, the table and its states have the bits that NumPy computes.

Gradients are multiples of powers of two, so that their sums are exact in any order. Lookups of
the batches have ids out of range and weights, or means. Some rows are frozen. Tables begin anew
after a number of steps, so that their entries stay small.
"""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

import embag
from tools.soak.contents import DIM, INVALID
from tools.soak.harness import Timer, WrongResultError, check_equal
from tools.soak.optimizer_formulas import RULES

N_ROWS, N_BAGS, N_BATCHES = 500, 100, 20
FROZEN = np.arange(0, N_ROWS, 10)
DTYPES = (np.float32, np.float64, np.float16)
STEPS_OF_A_TABLE = 100  # then it begins anew
N_GROUPS, TABLES_OF_A_GROUP = 2, 3  # of the collection


class Batch:
    """Ids in bags, the gradient of their output, and the terms of the gradient of the rows."""

    def __init__(self, rng: np.random.Generator, mode: str, has_weights: bool = False) -> None:
        self.mode = mode
        lengths = rng.integers(0, 17, N_BAGS)
        if mode == "mean":
            lengths = 2 ** rng.integers(0, 5, N_BAGS)  # the quotients are exact
        n = lengths.sum()
        self.offsets = np.cumsum(lengths) - lengths
        self.ids = rng.integers(0, N_ROWS, n)
        is_valid = np.ones(n, np.bool_)
        if mode == "sum":  # a mean would not divide by a power of two
            is_valid = rng.random(n) > 0.01
            self.ids[~is_valid] = rng.choice(INVALID, n - is_valid.sum())
        self.weights = rng.integers(1, 4, n).astype(np.float32) if has_weights else None
        self.grad_output = (rng.integers(-8, 9, (N_BAGS, DIM)) / 8).astype(np.float32)
        of_bags = self.grad_output / (lengths[:, np.newaxis] if mode == "mean" else 1)
        terms = np.repeat(of_bags, lengths, axis=0)
        if self.weights is not None:
            terms = terms * self.weights[:, np.newaxis]
        self.valid_ids, self.terms = self.ids[is_valid], terms[is_valid]


class RowGradient:
    """The rows that change, and the gradient of each."""

    def __init__(self, batches: list[Batch], table: Any) -> None:
        ids = np.concatenate([batch.valid_ids for batch in batches])
        terms = np.concatenate([batch.terms for batch in batches])
        if isinstance(table, embag.RemappedTable):
            ids, terms = table.index_map[ids], terms * table.scales[ids, np.newaxis]
        total = np.zeros((N_ROWS, DIM))
        np.add.at(total, ids, terms)
        self.rows = np.setdiff1d(ids, FROZEN)
        self.values = total[self.rows]


class TrainedTable:
    """A table, its optimizer, and the rows and states that NumPy computes."""

    def __init__(self, seed: int, rule: str, dtype: Any, is_remapped: bool = False) -> None:
        rng = np.random.default_rng(seed)
        self.name = f"{rule} of {np.dtype(dtype)}"
        self.rule = RULES[rule]
        self.first_rows = (rng.integers(-8, 9, (N_ROWS, DIM)) / 8).astype(dtype)
        self.remapping: tuple[np.ndarray, ...] = ()
        if is_remapped:  # ids share rows, with scales
            scales = rng.integers(1, 3, N_ROWS).astype(np.float32)
            self.remapping = rng.integers(0, N_ROWS, N_ROWS), scales
        self.begin()

    def begin(self) -> None:
        """Make a new optimizer of a new table."""
        table = self.first_rows.copy()
        remapped = embag.RemappedTable(table, *self.remapping) if self.remapping else table
        self.optimizer = self.rule.make(remapped, frozen=FROZEN)
        self.n_steps = 0
        self.expected = [table.copy(), *(a.copy() for a in self.optimizer.states.values())]

    def expect_step(self, gradient: RowGradient) -> None:
        self.n_steps += 1
        rows, *states = (array[gradient.rows] for array in self.expected)
        dtype = np.promote_types(rows.dtype, np.float32)  # that of sums
        values = gradient.values.astype(dtype)
        changed = self.rule.formula(self.n_steps, values, rows.astype(dtype), *states)
        for array, new in zip(self.expected, changed, strict=True):
            array[gradient.rows] = new

    def arrays(self) -> list[np.ndarray]:
        table = self.optimizer.table
        rows = table.table if isinstance(table, embag.RemappedTable) else table
        return [rows, *self.optimizer.states.values()]

    def check(self, timer: Timer) -> None:
        if self.optimizer.n_steps != self.n_steps:
            raise WrongResultError(f"{self.name}: {self.optimizer.n_steps} steps of {self.n_steps}")
        for i, (array, expected) in enumerate(zip(self.arrays(), self.expected, strict=True)):
            part = f"state {i}" if i else "table"
            check_equal(timer, array, expected, f"{part} of {self.name}, step {self.n_steps}")


def steps_of_tables(number: int, is_remapped: bool = False) -> Callable[[Timer], None]:
    """Return work on a table for each optimizer: a step of the next table."""
    rng = np.random.default_rng(number)
    batches = [Batch(rng, "mean" if i % 4 == 3 else "sum", i % 2 == 0) for i in range(N_BATCHES)]
    cases = []
    for i, rule in enumerate(RULES):
        dtype = np.float32 if is_remapped else DTYPES[(i + number) % len(DTYPES)]
        table = TrainedTable(number, rule, dtype, is_remapped)
        gradients = [RowGradient([batch], table.optimizer.table) for batch in batches]
        cases.append((table, itertools.cycle(zip(batches, gradients, strict=True))))
    turn = itertools.cycle(cases)

    def work(timer: Timer) -> None:
        table, steps = next(turn)
        batch, gradient = next(steps)
        if table.n_steps == STEPS_OF_A_TABLE:
            table.begin()
        with timer:
            table.optimizer.update(
                *(batch.grad_output, batch.ids, batch.offsets),
                mode=batch.mode,
                per_sample_weights=batch.weights,
                invalid="skip",
            )
        table.expect_step(gradient)
        table.check(timer)

    return work


class TrainedCollection:
    """A collection whose tables several threads train, each thread a group of its own.

    The first table of a group has two features. Each batch has ids for all features.
    """

    def __init__(self) -> None:
        rules = itertools.cycle(RULES)
        self.groups = [
            {
                f"table_{group}_{i}": TrainedTable(i, next(rules), (np.float32, np.float16)[i % 2])
                for i in range(TABLES_OF_A_GROUP)
            }
            for group in range(N_GROUPS)
        ]
        tables = {name: table for group in self.groups for name, table in group.items()}
        self.features = [
            *(embag.Feature(f"{name}_sums", name, "sum") for name in tables),
            *(embag.Feature(f"{next(iter(g))}_means", next(iter(g)), "mean") for g in self.groups),
        ]
        self.ebc = embag.EmbeddingBagCollection(
            {name: table.optimizer.table for name, table in tables.items()},
            self.features,
            invalid="skip",
        )

    def steps(self, number: int) -> Callable[[Timer], None]:
        """Return work that trains the tables of a group."""
        rng = np.random.default_rng(number)
        group = self.groups[number]
        turn = itertools.cycle([self.make_step(rng, group) for _ in range(N_BATCHES)])

        def work(timer: Timer) -> None:
            grad_output, ids, gradients = next(turn)
            if next(iter(group.values())).n_steps == STEPS_OF_A_TABLE:
                self.begin(group)
            optimizers = {name: table.optimizer for name, table in group.items()}
            with timer:
                self.ebc.update(grad_output, ids, optimizers=optimizers)
            for name, table in group.items():
                table.expect_step(gradients[name])
                table.check(timer)

        return work

    def make_step(self, rng: np.random.Generator, group: dict[str, TrainedTable]) -> Any:
        batches = {feature: Batch(rng, feature.mode) for feature in self.features}
        grad_output = np.hstack([batch.grad_output for batch in batches.values()])
        ids = {feature.name: (batch.ids, batch.offsets) for feature, batch in batches.items()}
        gradients = {
            name: RowGradient([b for feature, b in batches.items() if feature.table == name], None)
            for name in group
        }
        return grad_output, ids, gradients

    def begin(self, group: dict[str, TrainedTable]) -> None:
        for name, table in group.items():
            table.begin()
            self.ebc.replace(name, table.optimizer.table)

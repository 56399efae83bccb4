"""Checkpoints: one thread trains, saves, loads and continues; others load the same file.

A checkpoint holds its number and the checksum of its arrays. A loaded one must be whole, and at
least as new as the last one that was complete when the load began.
"""

import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

import embag
from tools.soak.harness import Timer, WrongResultError
from tools.soak.optimizer_formulas import RULES
from tools.soak.training import (
    DTYPES,
    N_BATCHES,
    STEPS_OF_A_TABLE,
    Batch,
    RowGradient,
    TrainedTable,
)


class Checkpoints:
    """Tables in training, and the file of their checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.safetensors"
        self.tables = {
            rule: TrainedTable(i, rule, DTYPES[i % len(DTYPES)]) for i, rule in enumerate(RULES)
        }
        rng = np.random.default_rng(0)
        self.batches = [Batch(rng, "sum") for _ in range(N_BATCHES)]
        self.gradients = [RowGradient([batch], None) for batch in self.batches]
        self.n_begun = self.n_complete = 0
        self.save()

    def save(self) -> None:
        optimizers = {rule: table.optimizer for rule, table in self.tables.items()}
        self.n_begun += 1
        expected = (array for table in self.tables.values() for array in table.expected)
        metadata = {"number": self.n_begun, "checksum": checksum(expected)}
        embag.save_checkpoint(self.path, optimizers, metadata=metadata)
        self.n_complete = self.n_begun

    def train_and_save(self, timer: Timer) -> None:
        """Make a step of each table, save all, and continue with the loaded ones."""
        i = self.n_begun % N_BATCHES
        batch = self.batches[i]
        for table in self.tables.values():
            if table.n_steps == STEPS_OF_A_TABLE:
                table.begin()
            table.optimizer.update(
                batch.grad_output, batch.ids, batch.offsets, mode="sum", invalid="skip"
            )
            table.expect_step(self.gradients[i])
        with timer:
            self.save()
            items = embag.load_checkpoint(self.path, verify=True)
        for rule, table in self.tables.items():
            table.check(timer)  # the one that was saved
            table.optimizer = items[rule]
            table.check(timer)

    def load(self, timer: Timer) -> None:
        oldest = self.n_complete
        with timer:
            items, metadata = embag.load_checkpoint(self.path, return_metadata=True)
        number = metadata["number"]
        if not oldest <= number <= self.n_begun:
            raise WrongResultError(f"checkpoint {number}, not {oldest} to {self.n_begun}")
        arrays = [a for item in items.values() for a in (item.table, *item.states.values())]
        if checksum(arrays) != metadata["checksum"]:
            raise WrongResultError(f"another checksum of checkpoint {number}")
        timer.n_values += sum(array.size for array in arrays)


def checksum(arrays: Iterable[np.ndarray]) -> int:
    value = 0
    for array in arrays:
        value = zlib.crc32(array.tobytes(), value)
    return value

"""Table files that one thread replaces while others load them and look up bags.

Some files hold remapped tables. The versions of a file are numbered. A loaded table must be of
one version, at least as new as the last one that was complete when the load began. A table that
was loaded before keeps its version, although its file has been replaced.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

import embag
from tools.soak.contents import ENCODINGS, Request, make_table
from tools.soak.harness import Timer, WrongResultError, check_equal
from tools.soak.remapped_tables import make_remapped_table

N_FILES = 2 * len(ENCODINGS)  # each encoding, plain and remapped


class TableFile:
    """A file, its numbers of versions, and bags of its table."""

    def __init__(self, folder: Path, number: int) -> None:
        self.number = number
        self.make = make_table if number < len(ENCODINGS) else make_remapped_table
        self.path = folder / f"table_{number}.safetensors"
        self.request = Request(number, [number], n_bags=50, most_ids=20)
        embag.save_table(self.path, self.make(number, 0))
        self.n_begun = self.n_complete = 0  # replacements

    def replace(self, timer: Timer) -> None:
        table = self.make(self.number, self.n_begun + 1)
        self.n_begun += 1
        with timer:
            embag.save_table(self.path, table)
        self.n_complete = self.n_begun

    def look_up(self, table: Any) -> np.ndarray:
        ids, offsets = self.request.named["feature_0"]
        result: np.ndarray = embag.embedding_bag(ids, table, offsets, mode="sum", invalid="skip")
        return result


class TableFiles:
    """The files, and work on each in turn."""

    def __init__(self, folder: Path) -> None:
        self.files = [TableFile(folder, number) for number in range(N_FILES)]
        self.turn = itertools.cycle(self.files)

    def replace(self, timer: Timer) -> None:
        next(self.turn).replace(timer)

    def loads(self, memory: Literal["map", "copy"]) -> Callable[[Timer], None]:
        """Return work that loads the next file, and looks up bags of it."""
        turn = itertools.cycle(self.files)
        loaded: dict[int, tuple[Any, np.ndarray]] = {}  # the table of each file, and its result

        def work(timer: Timer) -> None:
            file = next(turn)
            if file.number in loaded:
                table, before = loaded[file.number]
                result = file.look_up(table)
                check_equal(timer, result, before, f"a table loaded before from {file.path.name}")
            oldest = file.n_complete
            with timer:
                table = embag.load_table(file.path, memory, verify=memory == "copy")
                result = file.look_up(table)
            versions = range(oldest, file.n_begun + 1)
            if not any(np.array_equal(result, file.request.expected([v])) for v in versions):
                raise WrongResultError(
                    f"not that of {file.path.name}, versions {versions[0]} to {versions[-1]}"
                )
            timer.n_values += result.size
            loaded[file.number] = table, result

        return work

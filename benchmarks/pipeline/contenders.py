"""The command line of each contender, and which package it needs."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable, "-m"
_BATCHES = "benchmarks.pipeline.batches"
_QUERIES = "benchmarks.pipeline.queries"


@dataclass(frozen=True)
class Contender:
    title: str
    command: tuple[str, ...]  # before the names of the files
    package: str
    file: str = "events"  # or "part": so many rows would take too long, or too much memory

    @property
    def tells_parts(self) -> bool:
        """Does it print what reading, pooling and writing took?"""
        return self.command[:1] == (_BATCHES,)

    def missing(self) -> str | None:
        """Say why this contender cannot run on this machine."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None

    def arguments(self, events: Path, out: Path) -> list[str]:
        return [*PYTHON, *self.command, str(events), str(out)]


class EmbagPool(Contender):
    """The command itself."""

    def arguments(self, events: Path, out: Path) -> list[str]:
        table = str(events.parent / "items.npy")
        return [
            *(*PYTHON, "embag", "pool", str(events), "--column", "item_ids", "--table", table),
            *("--mode", "mean", "--keep", "user_id", "--out", str(out), "--json"),
        ]


CONTENDERS = {
    "embag": EmbagPool("`embag pool`", (), "click"),
    "embag-serial": Contender("embag, in turn", (_BATCHES, "embag", "serial"), "embag"),
    "embag-threads": Contender("embag, in threads", (_BATCHES, "embag", "threads"), "embag"),
    "torch-serial": Contender("torch, in turn", (_BATCHES, "torch", "serial"), "torch"),
    "torch-threads": Contender("torch, in threads", (_BATCHES, "torch", "threads"), "torch"),
    "numpy": Contender(
        "NumPy, `table[ids].mean(axis=0)`", (_BATCHES, "numpy", "serial"), "numpy", "part"
    ),
    "numpy-take": Contender(
        "NumPy, the fastest loop", (_BATCHES, "numpy-take", "serial"), "numpy", "part"
    ),
    "polars": Contender("polars, one query", (_QUERIES, "polars"), "polars", "part"),
    "polars-batches": Contender(
        "polars, a query for each batch", (_BATCHES, "polars", "serial"), "polars", "part"
    ),
    "duckdb": Contender("DuckDB, one query", (_QUERIES, "duckdb"), "duckdb", "part"),
    "duckdb-batches": Contender(
        "DuckDB, a query for each batch", (_BATCHES, "duckdb", "serial"), "duckdb", "part"
    ),
}

"""The contenders that pool a file: their command lines, and the packages that they need."""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

PYTHON = sys.executable, "-m"


@dataclass(frozen=True)
class Contender:
    """A program of this benchmark."""

    title: str
    package: str
    program: tuple[str, ...]  # the arguments before the names of the files
    file: str = "events"  # or "part", for slow contenders

    def missing(self) -> str | None:
        """Return the reason if this contender cannot run on this machine."""
        if importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return None

    def command(self, events: Path, out: Path) -> list[str]:
        return [*PYTHON, *self.program, str(events), str(out)]

    def parts(self, output: str) -> dict[str, float]:
        """Return the seconds of each part of the work, if the program printed them."""
        return json.loads(output or "{}")  # type: ignore[no-any-return]


class EmbagPool(Contender):
    """The command `embag pool`."""

    def command(self, events: Path, out: Path) -> list[str]:
        table = events.parent / "items.npy"
        options = ("--column", "item_ids", "--table", str(table), "--mode", "mean")
        kept = ("--keep", "user_id", "--out", str(out), "--json")
        return [*PYTHON, *self.program, str(events), *options, *kept]

    def parts(self, output: str) -> dict[str, float]:
        summary = json.loads(output)
        stages = {"read": "reading", "pool": "pooling", "write": "writing"}
        return {part: summary[f"{stage}_seconds"] for part, stage in stages.items()}


def _batches(title: str, package: str, *pool_and_how: str, file: str = "events") -> Contender:
    return Contender(title, package, ("benchmarks.pipeline.batches", *pool_and_how), file)


def _query(title: str, package: str) -> Contender:
    return Contender(title, package, ("benchmarks.pipeline.queries", package), "part")


CONTENDERS: dict[str, Contender] = {
    "embag": EmbagPool("`embag pool`", "click", ("embag", "pool")),
    "embag-serial": _batches("embag, in turn", "embag", "embag", "serial"),
    "embag-threads": _batches("embag, in threads", "embag", "embag", "threads"),
    "torch-serial": _batches("torch, in turn", "torch", "torch", "serial"),
    "torch-threads": _batches("torch, in threads", "torch", "torch", "threads"),
    "numpy": _batches("NumPy loop", "numpy", "numpy", "serial", file="part"),
    "numpy-take": _batches("fastest NumPy loop", "numpy", "numpy-take", "serial", file="part"),
    "polars": _query("polars, one query", "polars"),
    "polars-batches": _batches("polars, by batch", "polars", "polars", "serial", file="part"),
    "duckdb": _query("DuckDB, one query", "duckdb"),
    "duckdb-batches": _batches("DuckDB, by batch", "duckdb", "duckdb", "serial", file="part"),
}

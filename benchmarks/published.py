"""The published results: in `results/`, a file for each group of workloads and each processor.

A file is named after both, such as `forward-amd-26-2.json`.
"""

import json
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.operations.workloads import GROUPS

FOLDER = Path(__file__).with_name("results")
PEERS = ("torch", "zentorch", "fbgemm", "scipy", "numba", "numpy")


def add(run: dict[str, Any], workload: dict[str, Any], folder: Path = FOLDER) -> None:
    """Add a workload of a run to the file of its group and of the run's processor.

    Workloads that the file has from runs with the same versions and settings stay in it.
    """
    group = next(group for group, names in GROUPS.items() if workload["name"] in names)
    path = folder / f"{group}-{run['machine']['key']}.json"
    workloads = {}
    if path.exists():
        old = json.loads(path.read_text())
        if all(old[part] == run[part] for part in ("versions", "settings", "missing")):
            workloads = {one["name"]: one for one in old["workloads"]}
    workloads[workload["name"]] = workload
    in_order = [workloads[name] for name in GROUPS[group] if name in workloads]
    path.write_text(json.dumps(run | {"workloads": in_order}, indent=1) + "\n")


def find(group: str, folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """Yield the results of a group, by processor."""
    for path in sorted(folder.glob(f"{group}-*.json")):
        yield json.loads(path.read_text())


@dataclass
class Processor:
    """The published results of a processor."""

    name: str
    key: str
    groups: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)  # by name


def find_all(folder: Path = FOLDER) -> list[Processor]:
    """Return the results of all processors."""
    processors: dict[str, Processor] = {}
    for group in GROUPS:
        for results in find(group, folder):
            name, key = results["machine"]["name"], results["machine"]["key"]
            of_one = processors.setdefault(key, Processor(name, key))
            of_one.groups[group] = {workload["name"]: workload for workload in results["workloads"]}
    return list(processors.values())


def update(path: Path, text: str, check: bool) -> None:
    """Write a file; with `check`, exit with an error instead if it differs."""
    if not check:
        path.write_text(text)
    elif not path.exists() or path.read_text() != text:
        sys.exit(f"{path} does not match the published results")


def best_peer(workload: dict[str, Any]) -> tuple[str, float] | None:
    """Return the peer that embag is the least times as fast as, and how many."""
    seconds = {name: figures["seconds"] for name, figures in workload["contenders"].items()}
    ratios = {
        name: statistics.median(p / e for p, e in zip(seconds[name], seconds["embag"], strict=True))
        for name in PEERS
        if name in seconds and "embag" in seconds
    }
    return min(ratios.items(), key=lambda item: item[1], default=None)

"""Run the workloads: `python -m benchmarks.run`, from the root of the repository.

Each contender has a process of its own. They run in turn, one at a time (A B A B). Each round is
compared with the neighbouring rounds of the peers. On a shared machine, times drift by a factor
of two within minutes, but the median of these ratios does not. Absolute figures are medians, too.

For each contender a line has its time, how many times as fast as each peer it is, and its share
of the gather limit and of embag's best pinned strategy. embag runs twice, as "embag-again": the
ratio of the two is the noise.
"""

import argparse
import json
import os
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from benchmarks import machine, published
from benchmarks.operations.contenders import ALL, CONTENDERS
from benchmarks.operations.worker import Worker
from benchmarks.operations.workloads import GROUPS, QUICK, WORKLOADS, Workload, get_workload

# The contenders that the others are compared with.
BASELINES = (*published.PEERS, "torch-uncoalesced", "two-calls", "one-thread")
LIMITS = ("limit", "limit-numpy")  # the second is for tables that NumPy allocated
# A limit that something exceeds by more than this is none.
MOST_OF_LIMIT = 1.02


def main() -> None:
    arguments = parse_arguments()
    missing = {name: contender.missing() for name, contender in ALL.items()}
    missing = {name: reason for name, reason in missing.items() if reason}
    for name, reason in missing.items():
        print(f"without {name}: {reason}")

    results = machine.facts()
    results["settings"] = {
        "quick": arguments.quick,
        "rounds": arguments.rounds,
    }
    results["missing"] = missing
    results["workloads"] = []
    for name in arguments.workloads:
        workload = get_workload(name, arguments.quick)
        wanted = arguments.contenders or workload.contenders
        result = measure(workload, [c for c in wanted if c not in missing], arguments)
        results["workloads"].append(result)
        show(result)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=1) + "\n")
        if arguments.publish:
            published.add(results, result)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of a few seconds")
    parser.add_argument(
        "--workloads", nargs="+", choices=[*GROUPS, *WORKLOADS], help="default: all"
    )
    parser.add_argument(
        "--contenders", nargs="+", choices=ALL, help="default: depends on the workload"
    )
    parser.add_argument(
        "--threads", type=int, help="of each contender; default: as the workload has it"
    )
    parser.add_argument("--rounds", type=int, help="default: 21")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="put the results into benchmarks/results/, in the files of this processor",
    )
    arguments = parser.parse_args()
    if arguments.publish and (arguments.quick or arguments.contenders or arguments.threads):
        parser.error("--publish is for whole workloads, as they are defined")
    if arguments.rounds is None:
        arguments.rounds = 2 if arguments.quick else 21
    if arguments.workloads is None:
        arguments.workloads = QUICK if arguments.quick else WORKLOADS
    names = [GROUPS.get(name, [name]) for name in arguments.workloads]
    arguments.workloads = [name for group in names for name in group]
    return arguments


def measure(
    workload: Workload, contenders: list[str], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure one workload; return its entry of the results."""
    classes = CONTENDERS[workload.kind]
    n_threads = arguments.threads or workload.n_threads
    reasons = {
        c: classes[c].unsuited(workload, n_threads) if c in classes else "no such operation"
        for c in contenders
    }
    seconds: dict[str, list[float]] = {c: [] for c in contenders if reasons[c] is None}
    with ExitStack() as stack:
        workers = {}
        for c in seconds:
            worker = Worker(workload.name, c, n_threads, arguments.quick)
            workers[c] = stack.enter_context(closing(worker))
        for _ in range(arguments.rounds):
            for c, worker in workers.items():
                seconds[c].append(worker.seconds())
        facts = {c: worker.facts for c, worker in workers.items()}
    return {
        "name": workload.name,
        "title": workload.title,
        "kind": workload.kind,
        "gradient": workload.gradient,
        "n_rows": workload.n_rows,
        "dim": workload.dim,
        "dtype": workload.dtype,
        "n_tables": workload.n_tables,
        "n_bags": workload.n_bags,
        "n_batches": workload.n_batches,
        "n_threads": n_threads,
        "load": os.getloadavg()[0],
        "limit target": workload.limit_target,
        "unsuited": {c: reason for c, reason in reasons.items() if reason},
        "contenders": {c: summarize(workload, c, seconds, facts[c]) for c in seconds},
    }


def summarize(
    workload: Workload, contender: str, seconds: dict[str, list[float]], facts: dict[str, Any]
) -> dict[str, Any]:
    median = statistics.median(seconds[contender])
    times = {b: median_ratio(seconds.get(b), seconds[contender]) for b in BASELINES}
    targets = workload.targets.get(contender, {})
    return {
        "bytes per row": workload.row_bytes,
        "ns per row": median / facts["n_indices"] * 1e9,
        "us per call": median / facts["n_calls"] * 1e6,
        "GB/s": facts["n_indices"] * workload.row_bytes / median / 1e9,
        **{f"times {b}": ratio for b, ratio in times.items()},
        "targets": targets,
        "targets met": {b: times[b] >= target for b, target in targets.items() if times[b]},
        **{f"share of {b}": median_ratio(seconds.get(b), seconds[contender]) for b in LIMITS},
        "share of pinned": median_ratio(seconds.get("embag-pinned"), seconds[contender]),
        "times again": median_ratio(seconds.get("embag-again"), seconds[contender]),
        "note": facts["note"],
        "seconds": seconds[contender],
    }


def median_ratio(numerators: list[float] | None, denominators: list[float]) -> float | None:
    """Return the median of the ratios of neighbouring rounds."""
    if numerators is None:
        return None
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))


def show(result: dict[str, Any]) -> None:
    figures_of = result["contenders"]
    print(f"\n{result['name']}: {result['title']}, threads: {result['n_threads']}")
    for name, reason in result["unsuited"].items():
        print(f"  without {name}: {reason}")
    columns = [
        *(("x " + b, "times " + b) for b in BASELINES if b in figures_of),
        *(("of " + b, "share of " + b) for b in LIMITS if b in figures_of),
        *((("of pinned", "share of pinned"),) if "embag-pinned" in figures_of else ()),
        *((("A/A", "times again"),) if "embag-again" in figures_of else ()),
    ]
    headings = "".join(f"{heading:>{len(heading) + 2}}" for heading, _ in columns)
    print(f"                       ns/row    us/call    GB/s{headings}")
    for name, figures in figures_of.items():
        ratios = "".join(_number(figures[key], len(heading) + 2) for heading, key in columns)
        print(
            f"  {name:17}"
            f"{figures['ns per row']:10.2f} {figures['us per call']:10.2f} {figures['GB/s']:7.1f}"
            f"{ratios}  {figures['note']}",
            flush=True,
        )
    for line in verdicts(result):
        print(f"  {line}", flush=True)


def verdicts(result: dict[str, Any]) -> Iterator[str]:
    """Yield the best peer, each missed target, and each contender faster than the limit."""
    best = published.best_peer(result)
    if best:
        yield f"embag is {best[1]:.2f} times as fast as the best peer, {best[0]}"
    for name, figures in result["contenders"].items():
        for b, met in figures["targets met"].items():
            if not met:
                yield f"MISSED: {name} {figures['targets'][b]:g} times as fast as {b}"
        share = figures["share of limit"]
        if share and share > MOST_OF_LIMIT:
            yield f"NO LIMIT: {name} has {share:.2f} of it"


def _number(value: float | None, width: int) -> str:
    return " " * width if value is None else f"{value:{width}.2f}"


if __name__ == "__main__":
    main()

"""Run many cases in child processes, count how they end, and report failures.

    python -m tests.fuzz --cases 1000000 --seed 1 --jobs 2 --failures build/fuzz
    EMBAG_ISA=v3 python -m tests.fuzz --replay 1/4711 --eager

Case k of a seed is the same on every machine. If a signal or its own alarm kills a child, its
current case has failed. The children alternate between instruction-set levels, and every
other child uses threads for calls of any size.
"""

import argparse
import collections
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from embag._kernels import dispatch

PACKAGE = __spec__.parent
# Children write many small files, and flush each to disk.
MEMORY_FILES = "/dev/shm" if Path("/dev/shm").is_dir() else None


def main():
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="concurrent children")
    parser.add_argument("--chunk", type=int, default=20_000, help="cases per child")
    parser.add_argument("--failures", type=Path, help="a folder for reports of failures")
    parser.add_argument("--replay", metavar="SEED/CASE", help="run one case in this process")
    parser.add_argument(
        "--eager", action="store_true", help="replay with threads for calls of any size"
    )
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay, options.eager)
    started = time.monotonic()
    counts, n_failures = collections.Counter(), 0
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        chunks = [
            pool.submit(run_chunk, options, first, min(first + options.chunk, options.cases))
            for first in range(0, options.cases, options.chunk)
        ]
        for chunk in concurrent.futures.as_completed(chunks):
            seen, failures = chunk.result()
            counts.update(seen)
            n_failures += len(failures)
            for k, text in failures:
                report_failure(options, k, text)
            print(f"{sum(counts.values())} cases", file=sys.stderr, flush=True)
    print_counts(counts, time.monotonic() - started)
    return 1 if n_failures else 0


def settings_of(chunk):
    """Return the level of a chunk of cases, and whether small calls use threads."""
    levels = [level for level in dispatch.built_levels() if level in dispatch.supported_levels()]
    return levels[chunk % len(levels)], chunk % 2 == 1


def run_chunk(options, first, stop):
    """Run cases in a child, and in a new one whenever a child ends early."""
    level, eager = settings_of(first // options.chunk)
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "EMBAG_ISA": level}
    counts, failures = collections.Counter(), []
    while first < stop:
        with tempfile.TemporaryDirectory(dir=MEMORY_FILES) as folder:
            report = Path(folder, "report")
            child = subprocess.run(
                [
                    *(sys.executable, "-m", f"{PACKAGE}.child", options.seed),
                    *(str(first), str(stop), str(report), str(int(eager))),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,  # an argument may be `print`
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            if report.exists():
                first, seen, failed = json.loads(report.read_text())
                counts.update(seen)
                failures += failed
            if child.returncode == 0:
                continue
            at = Path(f"{report}.at")
            if not at.exists():
                raise SystemExit(f"a child did not start:\n{child.stderr}")
            # The cases since its last report are not counted.
            k = int(at.read_text())
            failures.append((k, f"exit status {child.returncode}\n{child.stderr[-6000:]}"))
            counts["died/"] += 1
            first = k + 1
    return counts, failures


def replay(name, eager):
    from .child import draw, prepare_process  # noqa: PLC0415  # the parent of children needs neither

    seed, _, k = name.rpartition("/")
    prepare_process(eager)
    call = draw(seed, int(k))
    print(call)
    from .checked_call import run  # noqa: PLC0415

    print(run(call))
    return 0


def report_failure(options, k, text):
    """Print a failure and the command that repeats it; write them to a file."""
    level, eager = settings_of(k // options.chunk)
    command = f"EMBAG_ISA={level} python -m tests.fuzz --replay {options.seed}/{k}"
    text = f"{command}{' --eager' if eager else ''}\n{text}\n"
    print(f"--- case {options.seed}/{k}\n{text}", file=sys.stderr, flush=True)
    if options.failures:
        options.failures.mkdir(parents=True, exist_ok=True)
        (options.failures / f"{options.seed}-{k}.txt").write_text(text)


def print_counts(counts, seconds):
    """Print how the cases of each function ended."""
    lines = collections.defaultdict(dict)
    for key, n in counts.items():
        name, _, end = key.partition("/")
        lines[name][end] = n
    for name in sorted(lines):
        ends = sorted(lines[name].items(), key=lambda item: -item[1])
        text = ", ".join(f"{end} {n}" for end, n in ends)
        print(f"{name:32}{sum(lines[name].values()):9}  {text}")
    total = sum(counts.values())
    print(f"{total} cases in {seconds:.0f} s: {total / seconds:.0f} a second")


if __name__ == "__main__":
    sys.exit(main())

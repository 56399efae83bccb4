"""The soak test: `python -m tools.soak --minutes 10`, from the root of the repository.

Two processes run concurrently: library.py puts mixed load on the library, and service.py runs
clients of examples/serving. Every result is checked. The test fails for an error, a wrong
result, a call that hangs, a kind of work that makes no progress, and for memory, threads or open
files that grow. `--json` writes the results. `--publish` also writes them into docs/soak.md, after
at least ten minutes without a problem.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from tools.soak import page
from tools.soak.harness import HANG_SECONDS

ROOT = Path(__file__).parents[2]
SETUP_SECONDS = 120  # for making tables, starting the service, and the last checks
# Bounds on the growth of a process after the warm-up; see docs/soak.md.
BOUNDS = {"growth, MB": 16, "growth, threads": 8, "growth, open files": 16}
PUBLISHED = ROOT / "benchmarks" / "results" / "soak.json"
PAGE = ROOT / "docs" / "soak.md"  # page.py renders part of it
PUBLISHED_MINUTES = 10  # the minimum of a published run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    parser.add_argument(
        "--publish", action="store_true", help="also write the results into docs/soak.md"
    )
    arguments = parser.parse_args()

    results = machine.facts()
    results["minutes"] = arguments.minutes
    results["parts"] = run_parts(arguments.minutes * 60)
    results["bounds"] = BOUNDS
    results["problems"] = find_problems(results["parts"])
    text = page.render(results)
    print(text)
    is_publishable = arguments.minutes >= PUBLISHED_MINUTES and not results["problems"]
    files = [arguments.json] if arguments.json else []
    if arguments.publish and is_publishable:
        files.append(PUBLISHED)
        page.write(PAGE, text)
    elif arguments.publish:
        print(f"{PAGE} is unchanged: it needs {PUBLISHED_MINUTES} minutes without a problem")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"written to {file}")
    sys.exit(1 if results["problems"] else 0)


def run_parts(seconds: float) -> dict[str, dict[str, Any]]:
    """Run both parts concurrently, each in a process of its own, within a time limit."""
    with running("service", seconds) as service:
        service.stdout.readline()  # waits until it is ready
        with running("library", seconds) as library:
            limit = seconds + HANG_SECONDS + SETUP_SECONDS
            return {"library": finish(library, limit), "service": finish(service, limit)}


@contextlib.contextmanager
def running(part: str, seconds: float) -> Iterator[Any]:
    command = [sys.executable, "-X", "faulthandler", "-m", f"tools.soak.{part}", str(seconds)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its children
        process.communicate()


def finish(process: Any, limit: float) -> dict[str, Any]:
    """Wait for a part, and return its results."""
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints the stacks of its threads
        process.wait()  # not for the end of its output: its children may keep that open
        output = ""
    if output and process.returncode == 0:
        found: dict[str, Any] = json.loads(output)
        return found
    message = f"{process.args[4]}: status {process.returncode}; see its output on stderr"
    return {"kinds": {}, "processes": {}, "numbers": {}, "problems": [message]}


def find_problems(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return a message for each problem."""
    found = []
    for part in parts.values():
        found += part["problems"]
        for kind, figures in part["kinds"].items():
            for what in ("errors", "wrong results"):
                if figures[what]:
                    found.append(f"{kind}: {figures[what]} {what}")
            if not figures["calls"] or figures["longest pause, s"] > HANG_SECONDS:
                found.append(f"{kind}: no call for {figures['longest pause, s']:.0f} s")
        for name, figures in part["processes"].items():
            for growth, bound in BOUNDS.items():
                if figures[growth] > bound:
                    unit = growth.removeprefix("growth, ")
                    found.append(f"{name}: grew by {figures[growth]:.0f} {unit}")
    return found


if __name__ == "__main__":
    main()

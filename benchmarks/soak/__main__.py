"""The soak: `python -m benchmarks.soak --minutes 10`, from the root of the repository.

Two processes at once: library.py, mixed load on the library, and service.py, clients of
examples/serving. Every result is checked. It fails if anything was wrong: an error, a wrong
result, a call that hangs, a kind of work that stood still, memory or threads that grow.
`--json` writes what was found. `--publish` also puts it into docs/soak.md, after ten minutes
or more without a problem.
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
from benchmarks.soak import page
from benchmarks.soak.harness import HANG_SECONDS

ROOT = Path(__file__).parents[2]
SETUP_SECONDS = 120  # for making tables, starting the service, the last checks
GROWTH_MB = 16  # what memory may grow by after the warm-up; docs/soak.md tells why
PUBLISHED = ROOT / "benchmarks" / "results" / "soak.json"
PAGE = ROOT / "docs" / "soak.md"  # has the part that page.py makes of it
PUBLISHED_MINUTES = 10  # at least


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    parser.add_argument("--publish", action="store_true", help="write them into docs/soak.md too")
    arguments = parser.parse_args()

    results = machine.facts()
    results["minutes"] = arguments.minutes
    results["parts"] = run_parts(arguments.minutes * 60)
    results["bounds"] = {"growth, MB": GROWTH_MB}
    results["problems"] = problems(results["parts"])
    text = page.render(results)
    print(text)
    is_worth_it = arguments.minutes >= PUBLISHED_MINUTES and not results["problems"]
    files = [arguments.json] if arguments.json else []
    if arguments.publish and is_worth_it:
        files.append(PUBLISHED)
        page.write(PAGE, text)
    elif arguments.publish:
        print(f"{PAGE} stays: that was no {PUBLISHED_MINUTES} minutes without a problem")
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=1) + "\n")
        print(f"written to {file}")
    sys.exit(1 if results["problems"] else 0)


def run_parts(seconds: float) -> dict[str, dict[str, Any]]:
    """Run both parts at once, each in a process of its own, within a time limit."""
    with running("service", seconds) as service:
        service.stdout.readline()  # when it is ready
        with running("library", seconds) as library:
            limit = seconds + HANG_SECONDS + SETUP_SECONDS
            return {"library": finish(library, limit), "service": finish(service, limit)}


@contextlib.contextmanager
def running(part: str, seconds: float) -> Iterator[Any]:
    command = [sys.executable, "-X", "faulthandler", "-m", f"benchmarks.soak.{part}", str(seconds)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with what it started
        process.communicate()


def finish(process: Any, limit: float) -> dict[str, Any]:
    """Return what a part has found."""
    try:
        output = process.communicate(timeout=limit)[0]
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler prints where its threads are
        process.wait()  # not for its output: what it started may keep that open
        output = ""
    if output and process.returncode == 0:
        found: dict[str, Any] = json.loads(output)
        return found
    message = f"{process.args[4]}: status {process.returncode}; it has said why"
    return {"kinds": {}, "processes": {}, "numbers": {}, "problems": [message]}


def problems(parts: dict[str, dict[str, Any]]) -> list[str]:
    """Return all that is wrong, in words."""
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
            if figures["growth, MB"] > GROWTH_MB:
                found.append(f"{name}: its memory grew by {figures['growth, MB']:.0f} MB")
    return found


if __name__ == "__main__":
    main()

"""``embag doctor``: report how embag runs in this environment, and what to change.

Tested in tests/cli/.
"""

import contextlib
import importlib
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

import embag
from embag._process import cgroups, waiting
from embag.cli._errors import report_errors
from embag.cli._output import format_bytes

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MEMORY = Path("/proc/self/smaps_rollup")
_MAPS = Path("/proc/self/maps")
_OPENMP = re.compile(r"/([^/]*(?:libgomp|libomp|libiomp5|vcomp)[^/]*)$", re.MULTILINE)


class _Finding(NamedTuple):
    topic: str
    found: str
    advice: str | None = None


@click.command()
@click.option(
    "--import",
    "modules",
    metavar="MODULE",
    multiple=True,
    help="Import MODULE, such as torch, first, to report what it changes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(modules: tuple[str, ...], as_json: bool) -> None:
    """Report how embag runs on this machine, and what to change.

    Run it where your program runs: in the same container, with the same environment variables.
    """
    for module in modules:
        with report_errors(f"--import {module}"):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise ImportError(str(error)) from error
    findings = [
        _Finding("embag", f"{embag.__version__}, {_describe_platform()}"),
        _check_level(),
        _check_threads(),
        _check_openmp(),
        _check_waiting(),
        _check_container(),
        _check_huge_pages(),
    ]
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings]))
        return
    for topic, found, advice in findings:
        print(f"{topic:12} {found}")
        if advice is not None:
            print(f"{'':10}-> {advice}")
    n = sum(finding.advice is not None for finding in findings)
    print(f"\n{n} to look at" if n else "\nnothing to change")


def _describe_platform() -> str:
    return f"NumPy {np.__version__}, Python {platform.python_version()}, {platform.platform()}"


def _check_level() -> _Finding:
    levels = embag.show_config("dicts")["levels"]
    in_use, supported, built = levels["in use"], levels["supported"], levels["built"]
    best = [level for level in supported if level in built][-1]
    advice = None
    if in_use != best:
        advice = (
            f"EMBAG_ISA={os.environ.get('EMBAG_ISA')} selects a lower level; unset it for {best}"
        )
    elif supported[-1] not in built:
        advice = f"this build lacks {supported[-1]}, which the processor supports; install a wheel"
    found = f"{in_use}; built: {', '.join(built)}; supported: {', '.join(supported)}"
    return _Finding("level", found, advice)


def _check_threads() -> _Finding:
    threads = embag.show_config("dicts")["threads"]
    found = f"{threads['count']} of {os.cpu_count()} processors, by {threads['decided by']}"
    return _Finding("threads", found, "; ".join(threads["notes"]) or None)


def _check_openmp() -> _Finding:
    if embag.show_config("dicts")["OpenMP"] is None:
        return _Finding(
            "OpenMP",
            "none",
            "embag was built without it, so calls use one thread; see CONTRIBUTING.md",
        )
    runtimes = _runtimes()
    found = ", ".join(runtimes) or "loaded from an unknown file"
    advice = None
    if len(runtimes) > 1:
        advice = (
            "the threads of one runtime may spin while another works; set "
            "OMP_WAIT_POLICY=passive, or use threadpoolctl around the calls"
        )
    return _Finding("OpenMP", found, advice)


def _runtimes() -> list[str]:
    """Return the file names of the OpenMP runtimes in this process."""
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        with contextlib.suppress(OSError):
            return sorted(set(_OPENMP.findall(_MAPS.read_text())))
        return []
    return sorted(
        {os.path.basename(i["filepath"]) for i in threadpool_info() if i["user_api"] == "openmp"}
    )


def _check_waiting() -> _Finding:
    if waiting.is_brief():
        return _Finding(
            "waiting", "after a call, threads spin for a fraction of a millisecond", None
        )
    policy = os.environ.get("OMP_WAIT_POLICY")
    advice = None
    if (policy or "").lower() != "passive" and embag.get_num_threads() > 1:
        advice = (
            "after a call, its threads spin until the next one; set it to passive unless large "
            "calls follow each other within a millisecond (docs/serving.md)"
        )
    return _Finding("waiting", f"OMP_WAIT_POLICY is {policy or 'not set'}", advice)


def _check_container() -> _Finding:
    quota, memory = cgroups.cpu_quota(), cgroups.memory_limit()
    limits = [f"{quota:g} processors"] if quota is not None else []
    # Some systems write "no limit" as a number near 2**63.
    if memory is not None and memory < 2**62:
        limits.append(f"{format_bytes(memory)} of memory")
    advice = None
    if quota is not None and os.environ.get("OMP_NUM_THREADS") is None:
        advice = "embag respects the quota, other libraries may not; set OMP_NUM_THREADS"
    return _Finding("container", ", ".join(limits) or "no limits", advice)


def _check_huge_pages() -> _Finding:
    """Allocate a table with `aligned_empty`, and count the huge pages that it is given."""
    if not sys.platform.startswith("linux"):
        return _Finding("huge pages", "not available on this system")
    setting = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text()) if _HUGE_PAGES.exists() else None
    name = "unknown" if setting is None else setting[1]
    before = _bytes_in_huge_pages()
    table = embag.aligned_empty((1 << 20, 16), np.float32)
    table[::64] = 0  # a row in each page
    after = _bytes_in_huge_pages()
    if before is None or after is None:
        return _Finding("huge pages", f"{name}; cannot be counted on this system")
    found = (
        f"{name}; {format_bytes(after - before)} of {format_bytes(table.nbytes)} are in huge pages"
    )
    advice = None
    if after - before < table.nbytes // 2:
        if name == "never":
            advice = (
                "with them, lookups in tables over some MB are 1.1 to 1.5 times as fast; enable "
                f"them in {_HUGE_PAGES}"
            )
        else:
            advice = "memory is fragmented or low; a restart of the machine may help"
    return _Finding("huge pages", found, advice)


def _bytes_in_huge_pages() -> int | None:
    try:
        match = re.search(r"^AnonHugePages:\s+(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1]) * 1024

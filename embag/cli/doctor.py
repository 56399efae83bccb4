"""``embag doctor``: how embag runs in this environment, and what to change.

Tested in tests/test_cli_doctor.py.
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
from embag import _cgroups
from embag.cli._failing import failing
from embag.cli._output import megabytes

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
    help="Import it first, to see what it brings: torch, say.",
)
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(modules: tuple[str, ...], as_json: bool) -> None:
    """Tell how embag runs here, and what to change.

    Run it where the work is done: in the same container, with the same environment variables.
    """
    for module in modules:
        with failing(f"--import {module}"):
            try:
                importlib.import_module(module)
            except ModuleNotFoundError as error:
                raise ImportError(str(error)) from error
    findings = [
        _Finding("embag", f"{embag.__version__}, {_platform()}"),
        _levels(),
        _threads(),
        _openmp(),
        _waiting(),
        _quota(),
        _huge_pages(),
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


def _platform() -> str:
    return f"NumPy {np.__version__}, Python {platform.python_version()}, {platform.platform()}"


def _levels() -> _Finding:
    levels = embag.show_config("dicts")["levels"]
    in_use, supported, built = levels["in use"], levels["supported"], levels["built"]
    best = [level for level in supported if level in built][-1]
    advice = None
    if in_use != best:
        advice = f"EMBAG_ISA={os.environ.get('EMBAG_ISA')} holds it back; unset, it is {best}"
    elif supported[-1] not in built:
        advice = f"this build lacks {supported[-1]}, which the processor has; take a wheel"
    found = f"{in_use}; built: {', '.join(built)}; the processor has: {', '.join(supported)}"
    return _Finding("level", found, advice)


def _threads() -> _Finding:
    threads = embag.show_config("dicts")["threads"]
    found = f"{threads['count']} of {os.cpu_count()} processors, by {threads['decided by']}"
    return _Finding("threads", found, "; ".join(threads["notes"]) or None)


def _openmp() -> _Finding:
    if embag.show_config("dicts")["OpenMP"] is None:
        return _Finding(
            "OpenMP", "none", "built without it, so a call has one thread; see CONTRIBUTING.md"
        )
    runtimes = _runtimes()
    found = ", ".join(runtimes) or "loaded, no telling from where"
    advice = None
    if len(runtimes) > 1:
        advice = (
            "several in one process: while one works, the threads of another may wait awake; "
            "OMP_WAIT_POLICY=passive, or threadpoolctl around the calls"
        )
    return _Finding("OpenMP", found, advice)


def _runtimes() -> list[str]:
    """Return the files of the OpenMP runtimes in this process."""
    try:
        from threadpoolctl import threadpool_info
    except ModuleNotFoundError:
        with contextlib.suppress(OSError):
            return sorted(set(_OPENMP.findall(_MAPS.read_text())))
        return []
    return sorted(
        {os.path.basename(i["filepath"]) for i in threadpool_info() if i["user_api"] == "openmp"}
    )


def _waiting() -> _Finding:
    policy = os.environ.get("OMP_WAIT_POLICY")
    advice = None
    if (policy or "").lower() != "passive" and embag.get_num_threads() > 1:
        advice = (
            "after a call threads wait awake for the next one; set it to passive unless large "
            "calls follow each other within a millisecond (docs/serving.md)"
        )
    return _Finding("waiting", f"OMP_WAIT_POLICY is {policy or 'not set'}", advice)


def _quota() -> _Finding:
    quota, memory = _cgroups.cpu_quota(), _cgroups.memory_limit()
    limits = [f"{quota:g} processors"] if quota is not None else []
    # "No limit" is a number too in some systems: 2**63.
    if memory is not None and memory < 2**62:
        limits.append(f"{megabytes(memory)} of memory")
    advice = None
    if quota is not None and os.environ.get("OMP_NUM_THREADS") is None:
        advice = "embag keeps to the quota, others may not; set OMP_NUM_THREADS"
    return _Finding("container", ", ".join(limits) or "no limits", advice)


def _huge_pages() -> _Finding:
    """Ask for huge pages, as `aligned_empty` does, and look whether they came."""
    if not sys.platform.startswith("linux"):
        return _Finding("huge pages", "no such thing to ask for here")
    setting = re.search(r"\[(\w+)\]", _HUGE_PAGES.read_text()) if _HUGE_PAGES.exists() else None
    name = "unknown" if setting is None else setting[1]
    before = _in_huge_pages()
    table = embag.aligned_empty((1 << 20, 16), np.float32)
    table[::64] = 0  # a row in each page
    after = _in_huge_pages()
    if before is None or after is None:
        return _Finding("huge pages", f"{name}; cannot be counted here")
    got = f"{name}; of {megabytes(table.nbytes)} asked for, {megabytes(after - before)} came"
    advice = None
    if after - before < table.nbytes // 2:
        if name == "never":
            advice = (
                f"tables over some MB are read 1.1 to 1.5 times as fast with them: {_HUGE_PAGES}"
            )
        else:
            advice = "memory is fragmented, or short; a restart of the machine may bring them"
    return _Finding("huge pages", got, advice)


def _in_huge_pages() -> int | None:
    try:
        match = re.search(r"^AnonHugePages:\s+(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if match is None else int(match[1]) * 1024

"""Prefetch strategies: their names, `EMBAG_PREFETCH`, and what has been chosen.

A strategy is written ``L2:64:8``: the cache that rows are prefetched into, how many positions
ahead of their use, and how many rows at once (0 or nothing: one at each position). On 64-bit Arm
processors, ``load:32:16`` is ``L1:32:16`` with a load of a byte of each row before its prefetch.
The kernels choose one for each class of work while real lookups run (`_kernels/strategies.pxi`).
Whether the pages of rows are prefetched, too, they choose for each table that is larger than half
of the memory (`_kernels/pages.pxi`).

Tested in tests/process/test_strategies.py and test_pages.py.
"""

import math
import os
import re
from typing import Any, NamedTuple, TypeAlias

from embag._kernels.dispatch import kernels

Strategy: TypeAlias = tuple[int, int, int]  # the way (of kernels.WAYS), rows ahead, rows at once

MOST = 4096  # rows ahead, and rows at once
_PLACES = ("at most 512 KiB", "512 KiB to 16 MiB", "more than 16 MiB")
_WIDEST = 7


def parse(text: str | None) -> Strategy | None:
    """Return the strategy that EMBAG_PREFETCH names; None if embag is to choose.

    Raises
    ------
    RuntimeError
        If the text is not `auto`, `pages`, `none`, or like `L2:64:8`.
    """
    if not text or text in ("auto", "pages"):
        return None
    if text == "none":
        return kernels.WAYS["L1"], 0, 0
    match = re.fullmatch(rf"({'|'.join(kernels.WAYS)}):([0-9]{{1,4}})(?::([0-9]{{1,4}}))?", text)
    if match is None or int(match[2]) == 0 or max(int(match[2]), int(match[3] or 0)) > MOST:
        raise RuntimeError(
            "EMBAG_PREFETCH must be auto, pages, none, or a cache, rows ahead and rows at once "
            f"such as L2:64:8 (at most {MOST} rows), got {text!r}"
        )
    way = kernels.WAYS[match[1]]
    # Single rows go into L1 in the kernels' walk; by other ways they are bursts of one.
    return way, int(match[2]), max(int(match[3] or 0), 0 if match[1] == "L1" else 1)


def name_of(strategy: Strategy) -> str:
    """Return the name of a strategy, as `parse` reads it."""
    way, ahead, burst = strategy
    if ahead == 0:
        return "none"
    names = {code: name for name, code in kernels.WAYS.items()}
    return f"{names[way]}:{ahead}" + (f":{burst}" if burst else "")


CANDIDATES = tuple(map(name_of, kernels.candidate_strategies()))
_BUDGETS = tuple(f"{n >> 10} KiB" for n in kernels.candidate_budgets())


class Choice(NamedTuple):
    """What has been chosen for a class of work."""

    work: str  # the class
    key: int
    state: str  # "default", "trying" or "settled"
    strategy: str
    n_switches: int  # how often another one won since it was settled first
    ns_per_row: dict[str, float]  # the least that each candidate took


def choices() -> list[Choice]:
    """Return the choice for each class of work that this process has had."""
    return [_choice(**found) for found in kernels.strategy_choices()]


def _choice(
    key: int,
    encoding: int,
    operation: str,
    width: int,
    place: int,
    several: bool,
    phase: str,
    chosen: int,
    n_switches: int,
    least: list[float],
) -> Choice:
    names = CANDIDATES[: len(least)]  # the last of them are not for all classes
    if len(least) != len(_BUDGETS):
        code_names = {code: encoding for encoding, code in kernels.ENCODING_CODES.items()}
        known = code_names[encoding]
        rows = known if isinstance(known, str) else f"{known[1]}-bit ({known[0]})"
        size = f"{64 << width} bytes" if width < _WIDEST else "any size"
        rows = f"{rows} rows of up to {size}"
    else:
        names, rows = _BUDGETS, "collections"
    threads = "several threads" if several else "one thread"
    return Choice(
        f"{operation}, {rows}, tables of {_PLACES[place]}, {threads}",
        key,
        phase,
        names[chosen],
        n_switches,
        {
            name: round(ns, 2)
            for name, ns in zip(names, least, strict=True)
            if phase != "default" and 0 < ns < math.inf
        },
    )


def pinned() -> str | None:
    """Return the strategy that EMBAG_PREFETCH pins, if it does."""
    return None if _pinned is None else name_of(_pinned)


def report() -> dict[str, Any]:
    """Return what `show_config` tells."""
    return {
        "pinned": pinned(),
        "choices": [
            {
                "work": choice.work,
                "state": choice.state,
                "strategy": choice.strategy,
                "changes": choice.n_switches,
                "ns per row": choice.ns_per_row,
            }
            for choice in choices()
        ],
        "pages": kernels.paged_tables(),
    }


def describe() -> list[str]:
    """Return the report as text."""
    if _pinned is not None:
        return [f"{name_of(_pinned)}, pinned by EMBAG_PREFETCH"]
    found = []
    for choice in choices():
        ns = choice.ns_per_row.get(choice.strategy)
        took = "" if ns is None else f", {ns:.1f} ns per row"
        changes = f", changed {choice.n_switches} times" if choice.n_switches else ""
        found.append(f"{choice.strategy} ({choice.state}{took}{changes}): {choice.work}")
    for table in kernels.paged_tables():
        verb = "are" if table["prefetched"] else "are not"
        found.append(f"pages of a table larger than half of the memory {verb} prefetched")
    return found or ["chosen while lookups run; none has been large enough so far"]


_pinned = parse(os.environ.get("EMBAG_PREFETCH"))
kernels.pin_strategy(_pinned)
kernels.pin_pages(os.environ.get("EMBAG_PREFETCH") == "pages")

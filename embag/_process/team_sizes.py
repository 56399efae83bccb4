"""How many threads pay, learned from the calls of this process.

A call with several threads takes as long as the last of them. If another program keeps a
processor busy, the thread that should run there waits for its turn, some milliseconds, and so
does the call. So kernels measure what their parallel regions take, and estimate what one thread
would have taken (`record_region` in `_kernels/chunks.pxi`). After one call that took notably
longer than that, calls of its size use half as many threads. More threads are tried again
after a pause, which grows while that fails, and after calls whose time makes up for what the
failure cost.

`EMBAG_THREADS=fixed` turns this off.

The state is written without locks: what threads write at the same time may be lost.

Tested in tests/process/test_team_sizes.py.
"""

import os
import time

TOLERANCE = 1.25  # times the time of one thread
FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5  # seconds
# A failed trial must be followed by calls on fewer threads that take this many times as long as
# it lost, so that trials cost an eighth of the time at most ...
REPAYMENT = 8
MOST_REPAYMENT = 0.8e9  # ... or this many ns: more threads are soon back when others end
_CALM = 2.0  # seconds without a failure after which pauses are short again


class _Size:
    """What is known of calls with a similar number of entries."""

    def __init__(self) -> None:
        self.limit = 1
        self.pause = 0.0
        self.resume_at = 0.0  # seconds: no trial before that
        self.n_owed = 0.0  # entries: nor before so many have been looked up
        self.failed_at = -_CALM
        self.failure = (0, 0.0, 0.0)  # threads, ns, ns on one thread


_sizes: dict[int, _Size] = {}  # by the number of bits of the number of entries


def parse(text: str | None) -> bool:
    """Return whether EMBAG_THREADS asks for counts that calls never lower.

    Raises
    ------
    RuntimeError
        If the text is neither `adaptive` nor `fixed`.
    """
    if text not in (None, "", "adaptive", "fixed"):
        raise RuntimeError(f"EMBAG_THREADS must be adaptive or fixed, got {text!r}")
    return text == "fixed"


is_fixed = parse(os.environ.get("EMBAG_THREADS"))


def limit(n_entries: int, count: int) -> int:
    """Return how many of `count` threads a call of `n_entries` entries is to use."""
    size = _sizes.get(n_entries.bit_length())
    if size is None or count <= size.limit or is_fixed:
        return count
    if size.n_owed > n_entries or time.monotonic() < size.resume_at:
        return size.limit
    return min(count, 2 * size.limit)


def begin(n_entries: int, count: int) -> None:
    """Take note of a call that begins with as many threads as `limit` returned."""
    size = _sizes.get(n_entries.bit_length())
    if size is None:
        return
    size.n_owed -= n_entries
    if count > size.limit:
        # Other threads do not try at the same time.
        size.resume_at = time.monotonic() + size.pause


def learn(n_entries: int, count: int, took: float, alone: float) -> None:
    """Take note of a call with `count` threads, and of its ns on one thread."""
    if is_fixed or took <= 0:
        return
    key = n_entries.bit_length()
    size = _sizes.get(key)
    if took <= TOLERANCE * alone:
        if size is not None and count > size.limit:
            size.resume_at = size.n_owed = 0.0
            size.limit = count
        return
    if size is None:
        size = _sizes.setdefault(key, _Size())
    now = time.monotonic()
    recent = now - size.failed_at < _CALM
    size.pause = min(LAST_PAUSE, 2 * size.pause) if recent else FIRST_PAUSE
    size.resume_at = now + size.pause
    size.n_owed = n_entries * min(REPAYMENT * (took - alone), MOST_REPAYMENT) / max(1.0, alone)
    size.failed_at = now
    size.failure = count, took, alone
    size.limit = count // 2


def forget() -> None:
    """Drop what is known, as after a fork."""
    _sizes.clear()


def notes() -> list[str]:
    """Return what `show_config` tells about calls that use fewer threads."""
    now = time.monotonic()
    found = []
    for key, size in sorted(_sizes.items()):
        count, took, alone = size.failure
        if size.limit < count:
            found.append(
                f"calls of {1 << key - 1:,} to {(1 << key) - 1:,} entries use at most "
                f"{size.limit} of {count} threads: {now - size.failed_at:.1f} s ago one took "
                f"{took / 1e6:.1f} ms, and would have taken {alone / 1e6:.1f} ms on one thread"
            )
    return found

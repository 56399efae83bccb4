"""Warnings about lookups that would be much faster with a small change.

Tested in tests/tables/test_performance_warnings.py.
"""

import sys
import warnings
from types import FrameType

# Copies of smaller tables take too little time for a warning.
_WORTH_A_WARNING = 1 << 20  # bytes

# The caller is the first frame outside embag and the libraries that call its bridges.
_PASSED_THROUGH = frozenset({"embag", "pandas", "polars", "torch"})


class PerformanceWarning(UserWarning):
    """A call copies a table of more than 1 MiB, because it cannot be read in place.

    By default, Python shows it once for each line of the program. `aligned_copy` makes a table
    that is read in place.

    Examples
    --------
    To find such calls in tests, turn the warnings into errors:

    >>> import warnings
    >>> import numpy as np
    >>> import embag
    >>> columns_first = np.ones((300_000, 2), np.float32, order="F")
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", embag.PerformanceWarning)
    ...     embag.embedding_bag([[1, 2]], columns_first)
    Traceback (most recent call last):
        ...
    embag._performance.PerformanceWarning: weight is copied at each call (2 MB), as the entries \
of its rows are not adjacent: pass embag.aligned_copy(weight)
    """


def warn_of_copies(name: str, n_bytes: int, reason: str) -> None:
    """Warn, at the line of the user's call, that a table is copied at each call."""
    if n_bytes > _WORTH_A_WARNING:
        warnings.warn(
            f"{name} is copied at each call ({n_bytes / 1e6:.0f} MB), as {reason}: "
            f"pass embag.aligned_copy({name})",
            PerformanceWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """Return how many frames the user's call is above the function that calls this one."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package not in _PASSED_THROUGH:
            break
        frame, level = frame.f_back, level + 1
    return level

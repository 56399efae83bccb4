"""Modes: how the rows of a bag are reduced.

`MODES` is the table of all modes, read from that of the kernels (`_kernels/modes.pxi`).

Tested in tests/lookups/.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

from embag._arguments import describe
from embag._kernels.dispatch import kernels

ModeName: TypeAlias = Literal["sum", "mean", "sqrtn", "max", "min"]


class Mode(NamedTuple):
    """A way to reduce the rows of a bag."""

    name: str
    code: int  # in the kernels
    takes_weights: bool  # accepts per_sample_weights
    selects: bool  # each entry of the result is that of one row, and the kernels tell which
    sums: bool  # every row of a bag is a term of the result
    divides: bool  # the sum is divided by the number or the weights of entries that count


MODES = {
    name: Mode(name, code, *kernels.mode_traits(code)) for name, code in kernels.MODE_CODES.items()
}


def as_mode(mode: Any, *others: str) -> Mode:
    """Return the mode of this name; messages also name the `others`."""
    found = MODES.get(mode) if type(mode) is str else None
    if found is None:
        *names, last = map(repr, (*MODES, *others))
        raise ValueError(f"mode must be {', '.join(names)} or {last}, got {describe(mode)}")
    return found


def check_options(
    mode: Mode, sparse: bool, scale_grad_by_freq: bool, return_max_indices: bool = False
) -> None:
    """Raise for an option that the mode does not support."""
    name = repr(mode.name)
    if sparse and not mode.sums:
        raise ValueError(f"sparse must be False where mode is {name}, got True")
    if scale_grad_by_freq and not mode.sums:
        raise ValueError(f"scale_grad_by_freq must be False where mode is {name}, got True")
    if return_max_indices and not mode.selects:
        raise ValueError(f"return_max_indices must be False where mode is {name}, got True")


def check_weighted(mode: Mode, per_sample_weights: Any) -> None:
    """Raise unless the mode accepts weights."""
    if not mode.takes_weights:
        raise ValueError(
            f"per_sample_weights must be None where mode is {mode.name!r}, "
            f"got {describe(per_sample_weights)}"
        )


def check_winners(mode: Mode, max_indices: Any) -> None:
    """Raise unless the mode has winning rows."""
    if not mode.selects:
        raise ValueError(
            f"max_indices must be None where mode is {mode.name!r}, got {describe(max_indices)}"
        )

"""Choose the compiled level of the kernels, once, at import.

`_core.pyx` is compiled for the x86-64 levels baseline, v3 and v4. The best level that is built
and that this processor supports is used, unless the environment variable `EMBAG_ISA` names
another one. Every level computes the same bits.

Tested in tests/process/.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import TYPE_CHECKING

from embag._process.waiting import spinning_briefly

with spinning_briefly():  # the first compiled module that is imported loads OpenMP
    from embag import _core

# In ascending order: the level, its module, and the x86-64 level that it needs.
_LEVELS = {"baseline": ("_core", 0), "v3": ("_core_v3", 3), "v4": ("_core_v4", 4)}


def built_levels() -> list[str]:
    """Return the levels whose modules are installed."""
    return [
        level
        for level, (module, _) in _LEVELS.items()
        if importlib.util.find_spec(f"embag.{module}") is not None
    ]


def supported_levels() -> list[str]:
    """Return the levels that this processor supports."""
    return [level for level, (_, needed) in _LEVELS.items() if _core.cpu_level() >= needed]


def choose_level(wanted: str | None, built: list[str], supported: list[str]) -> str:
    """Return the level to use: `wanted`, or the best that is built and supported.

    Raises RuntimeError if `wanted` is unknown, not built, or not supported by this processor.
    """
    if not wanted:
        return [level for level in _LEVELS if level in built and level in supported][-1]
    if wanted not in _LEVELS:
        raise RuntimeError(f"EMBAG_ISA must be one of {', '.join(_LEVELS)}, got {wanted!r}")
    if wanted not in built:
        raise RuntimeError(
            f"EMBAG_ISA must be a level that is built ({', '.join(built)}), got {wanted!r}"
        )
    if wanted not in supported:
        raise RuntimeError(
            f"EMBAG_ISA must be a level that this processor runs ({', '.join(supported)}), "
            f"got {wanted!r}"
        )
    return wanted


def load_level(level: str) -> ModuleType:
    """Import the module of a level."""
    return importlib.import_module(f"embag.{_LEVELS[level][0]}")


level_in_use = choose_level(os.environ.get("EMBAG_ISA"), built_levels(), supported_levels())
if TYPE_CHECKING:
    kernels = _core  # every level has the same signatures
else:
    kernels = load_level(level_in_use)

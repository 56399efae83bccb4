"""Which compiled level to use, decided once at import.

`_core.pyx` is compiled for the x86-64 levels baseline, v3 and v4. A level is used if it
is built *and* this machine runs it; the best such level is the default and the
environment variable `EMBAG_ISA` names another. Every level computes the same bits.

Tested in tests/test_dispatch.py.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

from embag import _core

# From the least to the best: the level, its module, and the x86-64 level it needs.
_LEVELS = {"baseline": ("_core", 0), "v3": ("_core_v3", 3), "v4": ("_core_v4", 4)}


def built_levels() -> list[str]:
    return [
        level
        for level, (module, _) in _LEVELS.items()
        if importlib.util.find_spec(f"embag.{module}") is not None
    ]


def supported_levels() -> list[str]:
    return [level for level, (_, needed) in _LEVELS.items() if _core.cpu_level() >= needed]


def choose_level(wanted: str | None, built: list[str], supported: list[str]) -> str:
    """Return the level to use: `wanted`, or the best that is built and supported.

    Raises
    ------
    RuntimeError
        If `wanted` is no level, is not built, or is not supported by this machine.
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
    """Import a level's module. A failure is the caller's to see."""
    return importlib.import_module(f"embag.{_LEVELS[level][0]}")


level_in_use = choose_level(os.environ.get("EMBAG_ISA"), built_levels(), supported_levels())
kernels: Any = load_level(level_in_use)

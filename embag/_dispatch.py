"""Which compiled level to use, decided once at import; `show_config`.

`_core.pyx` is compiled for the x86-64 levels baseline, v3 and v4. A level is used if it
is built *and* this machine runs it; the best such level is the default and the
environment variable `EMBAG_ISA` names another. Every level computes the same bits.

Tested in tests/test_dispatch.py.
"""

import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any, Literal, overload

from embag import _core, _threads
from embag._version import __version__

# From the least to the best: the level, its module, and the x86-64 level it needs.
_LEVELS = {"baseline": ("_core", 0), "v3": ("_core_v3", 3), "v4": ("_core_v4", 4)}


def _built_levels() -> list[str]:
    return [
        level
        for level, (module, _) in _LEVELS.items()
        if importlib.util.find_spec(f"embag.{module}") is not None
    ]


def _supported_levels() -> list[str]:
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


level_in_use = choose_level(os.environ.get("EMBAG_ISA"), _built_levels(), _supported_levels())
kernels: Any = load_level(level_in_use)


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how embag was built and how it runs here, to paste into a report.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, optional
        "stdout" prints the report, "dicts" returns it.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: version, compiler, levels built, supported and in use,
        OpenMP, threads and the rule that decided their number.

    Raises
    ------
    ValueError
        If `mode` is neither.

    Examples
    --------
    >>> import embag
    >>> config = embag.show_config(mode="dicts")
    >>> config["levels"]["in use"] in config["levels"]["built"]
    True
    """
    if type(mode) is not str or mode not in ("stdout", "dicts"):
        seen = repr(mode) if type(mode) is str else type(mode).__name__
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {seen}")
    compiler, openmp = kernels.build_info()
    n_threads, rule = _threads.explain()
    config: dict[str, Any] = {
        "version": __version__,
        "compiler": compiler,
        "levels": {
            "built": _built_levels(),
            "supported": _supported_levels(),
            "in use": level_in_use,
        },
        "OpenMP": openmp or None,
        "threads": {"count": n_threads, "decided by": rule},
    }
    if mode == "dicts":
        return config
    levels = config["levels"]
    print(
        f"embag {__version__}\n"
        f"  compiler    {compiler}\n"
        f"  levels      built: {', '.join(levels['built'])}; "
        f"supported: {', '.join(levels['supported'])}; in use: {levels['in use']}\n"
        f"  OpenMP      {openmp or 'none: built without it, serial'}\n"
        f"  threads     {n_threads}, decided by {rule}"
    )
    return None

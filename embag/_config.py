"""`show_config`: how embag was built and how it runs here.

Tested in tests/test_dispatch.py and tests/test_threads.py.
"""

from typing import Any, Literal, overload

from embag import _arguments, _dispatch, _threads
from embag._version import __version__


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
        OpenMP, threads, the rule that decided their number, and notes on them.

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
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {_arguments.describe(mode)}")
    compiler, openmp = _dispatch.kernels.build_info()
    n_threads, rule = _threads.explain()
    config: dict[str, Any] = {
        "version": __version__,
        "compiler": compiler,
        "levels": {
            "built": _dispatch.built_levels(),
            "supported": _dispatch.supported_levels(),
            "in use": _dispatch.level_in_use,
        },
        "OpenMP": openmp or None,
        "threads": {"count": n_threads, "decided by": rule, "notes": _threads.notes()},
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
        f"  threads     {n_threads}, decided by {rule}",
        *config["threads"]["notes"],
        sep="\n              ",
    )
    return None

"""`show_config`: how embag was built and how it runs on this machine.

Tested in tests/process/.
"""

from typing import Any, Literal, overload

from embag import _arguments
from embag._kernels import dispatch, strategies
from embag._process import threads
from embag._version import __version__

_NEW_LINE = "\n              "


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Show how embag was built and how it runs on this machine, for bug reports.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, optional
        "stdout" prints the report, "dicts" returns it.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: the version, the compiler, the levels that are built, supported
        and in use, OpenMP's version, the number of threads with the rule that decided it and
        notes, and which prefetch strategies are in use. Otherwise None.

    Raises
    ------
    ValueError
        If `mode` is unknown.

    See Also
    --------
    get_num_threads : The number of threads alone.

    Examples
    --------
    >>> import embag
    >>> config = embag.show_config(mode="dicts")
    >>> config["levels"]["in use"] in config["levels"]["built"]
    True
    """
    if type(mode) is not str or mode not in ("stdout", "dicts"):
        raise ValueError(f"mode must be 'stdout' or 'dicts', got {_arguments.describe(mode)}")
    compiler, openmp = dispatch.kernels.build_info()
    n_threads, rule = threads.explain()
    config: dict[str, Any] = {
        "version": __version__,
        "compiler": compiler,
        "levels": {
            "built": dispatch.built_levels(),
            "supported": dispatch.supported_levels(),
            "in use": dispatch.level_in_use,
        },
        "OpenMP": openmp or None,
        "threads": {"count": n_threads, "decided by": rule, "notes": threads.notes()},
        "prefetching": strategies.report(),
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
        sep=_NEW_LINE,
    )
    print(f"  prefetching {_NEW_LINE.join(strategies.describe())}")
    return None

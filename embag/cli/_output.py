"""Output that commands share: numbers of bytes, peak memory, progress bars."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")


def format_bytes(n_bytes: float) -> str:
    """Return a number of bytes with a suitable unit."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return (
                f"{n_bytes:.0f} {unit}"
                if n_bytes >= 100 or unit == "B"
                else f"{n_bytes:.1f} {unit}"
            )
        n_bytes /= 1000
    return f"{n_bytes:.2f} GB"


def peak_memory() -> int | None:
    """Return the peak memory of the process in bytes, including mapped pages of files."""
    with contextlib.suppress(OSError):
        # On Linux, getrusage also counts the process that started this one.
        match = re.search(r"^VmHWM:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        if match is not None:
            return int(match[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextlib.contextmanager
def progress_bar(
    name: str, n_rows: int | None, n_bytes: int
) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on stderr, if that is a terminal.

    Yields a function that takes the numbers of rows and bytes done. The bar shows rows if their
    number is known, otherwise bytes.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda rows, read: None
        return
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with progress:
        total = n_bytes if n_rows is None else n_rows
        task = progress.add_task(name, total=total, rate="")

        def show(rows: int, read: int) -> None:
            elapsed = progress.tasks[0].elapsed or 0
            rate = f"{rows / elapsed:,.0f} rows/s" if elapsed else ""
            progress.update(task, completed=read if n_rows is None else rows, rate=rate)

        yield show

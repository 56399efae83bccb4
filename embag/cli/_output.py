"""What commands print: bytes, memory, progress."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_STATUS = Path("/proc/self/status")


def megabytes(n_bytes: float) -> str:
    """Return bytes in a unit that suits them."""
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
    """Return the most bytes of memory that the process had, pages of files included."""
    with contextlib.suppress(OSError):
        # Linux: what getrusage tells is also that of the process that has started this one.
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
    """Show how far a file is, on a terminal's stderr: call it with the rows and bytes done.

    It goes by rows where their number is known.
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

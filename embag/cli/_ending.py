"""Early ends of a run: signals, and failures after OUT is in place.

A signal ends the process immediately: the handler deletes the temporary files, prints one line
and exits. An exception would have to unwind while threads read and write the files, and a
second signal could interrupt the clean-up. Python calls a handler between two bytecodes of the
main thread. That thread also creates and renames the files, so the handler finds each file
either under its temporary name or in place.

Tested in tests/cli/.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

import click

from embag._files import replacement

_SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM", "SIGHUP": "ended by SIGHUP"}
_ERASE_LINE_AND_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # rich hides the cursor while it shows a bar

_handled: list[int] = []
_is_ending = False
_output: tuple[str, tuple[int, ...] | None] | None = None  # OUT, and the identity of the old file


def use_output(label: str, path: str, *inputs: str) -> None:
    """Check that OUT is not one of the inputs, and record which file it is now."""
    global _output  # noqa: PLW0603
    for source in inputs:
        if os.path.exists(source) and os.path.exists(path) and os.path.samefile(source, path):
            raise click.UsageError(f"{label} must be another file than {source}")
    _output = path, _identity(path)


def forget_output() -> None:
    """Forget the file of an earlier command in this process."""
    global _output  # noqa: PLW0603
    _output = None


def output_note() -> str:
    """Return a note for failures: that OUT has been written, if it has."""
    if _output is None or _identity(_output[0]) in {_output[1], None}:
        return ""
    return f"; {_output[0]} has been written"


def _identity(path: str) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def handle_signals() -> None:
    """Let SIGINT, SIGTERM and SIGHUP end the process, unless they are ignored (nohup)."""
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return  # Windows cannot delete open files; there Ctrl-C raises KeyboardInterrupt
    for name in _SIGNALS:
        number = signal.Signals[name]
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
            _handled.append(number)


def ignore_signals() -> None:
    """Ignore the signals: the work is done, and the exit status is final."""
    for number in _handled:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    global _is_ending  # noqa: PLW0603
    if _is_ending:  # the first signal decides
        return
    _is_ending = True
    for path in tuple(replacement.unfinished):
        with contextlib.suppress(OSError):  # it may not exist yet, or have been renamed
            os.unlink(path)
    context = click.get_current_context(silent=True)
    who = "embag" if context is None else context.command_path
    line = f"{who}: {_SIGNALS[signal.Signals(number).name]}{output_note()}\n"
    if os.isatty(2):
        line = _ERASE_LINE_AND_SHOW_CURSOR + line
    with contextlib.suppress(OSError):
        # Not through sys.stderr, which may be in the middle of a write.
        os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(128 + number)

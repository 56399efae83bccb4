"""How a run ends before its time: by a signal, or when OUT is in place and something fails.

A signal ends the process here and now: the temporary files are deleted, one line is printed,
and no other code runs. An exception instead would have to unwind while threads read and write
the files, and a second signal would interrupt the clean-up after the first. Python calls a
handler between two bytecodes of the main thread. That thread also creates and renames the
files, so the handler finds each file either under its temporary name or in place.

Tested in tests/test_cli_endings.py.
"""

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

import click

from embag import _replacing

_SIGNALS = {"SIGINT": "interrupted", "SIGTERM": "ended by SIGTERM", "SIGHUP": "ended by SIGHUP"}
_ERASE_LINE_AND_SHOW_CURSOR = "\r\x1b[K\x1b[?25h"  # rich hides the cursor beside a bar

_handled: list[int] = []
_is_ending = False
_output: tuple[str, tuple[int, ...] | None] | None = None  # OUT, and what was there before


def use_output(label: str, path: str, *inputs: str) -> None:
    """Check that OUT is none of the files that are read; remember which file is there now."""
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
    """Return what a failure has to add: that OUT has been written, if it has."""
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
        return  # Windows deletes no open file: Ctrl-C is an exception there
    for name in _SIGNALS:
        number = signal.Signals[name]
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
            _handled.append(number)


def ignore_signals() -> None:
    """Ignore the signals from now on: all is done, and the status is settled."""
    for number in _handled:
        signal.signal(number, signal.SIG_IGN)


def _end(number: int, _: FrameType | None) -> None:
    global _is_ending  # noqa: PLW0603
    if _is_ending:  # the first signal decides
        return
    _is_ending = True
    for path in tuple(_replacing.unfinished):
        with contextlib.suppress(OSError):  # it may not be there yet, or have been renamed
            os.unlink(path)
    context = click.get_current_context(silent=True)
    who = "embag" if context is None else context.command_path
    line = f"{who}: {_SIGNALS[signal.Signals(number).name]}{output_note()}\n"
    if os.isatty(2):
        line = _ERASE_LINE_AND_SHOW_CURSOR + line
    with contextlib.suppress(OSError):
        # Not by sys.stderr, which may be in the middle of a write.
        os.write(2, line.encode("utf-8", "backslashreplace"))
    os._exit(128 + number)

"""The command line: ``embag``, or ``python -m embag``.

A command is a file here, imported when it is called:

    pool.py        a column of ids in, a column of vectors out; its parts are
                   _sources.py (files in) with _json_lines.py, _lists.py (text to lists),
                   _sinks.py (files out) and _stages.py (reading, pooling and writing at
                   the same time)
    quantize.py    a table of floats to one of 8, 4 or 2 bits
    convert.py     a table from one file to another
    info.py        what is in a file
    doctor.py      how embag runs on this machine, and what to change
    bench.py       how fast it is on this machine
    demo.py        sentence search with a real model

The exit status is 0 if the work was done, 1 if it failed (one line on stderr says why),
2 for a wrong command line, 128 and the signal's number if a signal ended it. _group.py sees
to that, and _ending.py to the signals; _failing.py makes errors such lines, _options.py has
the options that several commands share, _output.py prints. What the extra `cli` installs is
imported by these files only.

Tested in tests/test_cli_*.py and tests/test_demo.py; docs/cli.md shows it at work.
"""

import sys
from collections.abc import Sequence

INSTALL_COMMAND = "pip install 'embag-cpu[cli]'"
_EXTRA = ("click", "rich", "pyarrow")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; those of the process by default. Only then do SIGINT, SIGTERM and
        SIGHUP end the process.

    Returns
    -------
    int
        0 for success, 1 for failure, 2 for a wrong command line, 130 after Ctrl-C.
    """
    try:
        from embag.cli._group import run

        return run(argv)
    except KeyboardInterrupt:  # of the imports
        return 130
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        print(
            f"embag: error: the package {missing} is not installed; "
            f"install the extra: {INSTALL_COMMAND}",
            file=sys.stderr,
        )
        return 1

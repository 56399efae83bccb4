"""The command line: ``embag``, or ``python -m embag``.

Each command is a file, imported when it is called:

    pool.py        pool a column of ids into a column of vectors, file to file
                   _sources.py reads files, _json_lines.py JSON lines; _lists.py parses lists;
                   _sinks.py writes files; _stages.py runs the three stages concurrently
    quantize.py    quantize a table of floats to 8, 4 or 2 bits
    convert.py     copy a table from one file to another
    info.py        describe a file
    doctor.py      report how embag runs on this machine, and what to change
    bench.py       measure embag on this machine
    tune.py        choose how a table's rows are prefetched, and print what each strategy takes
    demo.py        search sentences with a real model (_sentence_search.py)

The exit status is 0 for success, 1 for failure (one line on stderr gives the reason), 2 for a
wrong command line, and 128 plus the signal number if a signal ended the run.

    _group.py      the group of commands, and the exit status
    _ending.py     signals, and errors after the output file is complete
    _errors.py     errors as one line
    _options.py    options that several commands share
    _output.py     numbers of bytes and progress bars

Only these files import the packages of the extra `cli`.

Tested in tests/cli/; docs/cli.md shows examples.
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
        The arguments. By default, those of the process; only then are SIGINT, SIGTERM and
        SIGHUP handled, and end the process.

    Returns
    -------
    int
        0 for success, 1 for failure, 2 for a wrong command line, 130 after Ctrl-C.
    """
    try:
        from embag.cli._group import run

        return run(argv)
    except KeyboardInterrupt:  # during the imports
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

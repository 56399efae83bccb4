"""Run a command of embag that sends itself signals at a certain moment.

Run as ``signal_command.py MOMENT ARGUMENTS -- COMMAND ...``; a moment is a function below.
"""

import os
import signal
import sys

from embag.cli import main
from embag.quantized import QuantizedTable


def kill(name):
    os.kill(os.getpid(), getattr(signal, name))


def before_the_replacement(name):
    replace = os.replace

    def replace_after_a_signal(*paths):
        kill(name)
        replace(*paths)
        kill(name)

    os.replace = replace_after_a_signal


def after_the_replacement(name):
    replace = os.replace

    def replace_before_a_signal(*paths):
        replace(*paths)
        kill(name)

    os.replace = replace_before_a_signal


def during_the_last_write_and_the_removal():
    """Send SIGTERM first; others follow while the unfinished file is removed."""
    unlink, fsync = os.unlink, os.fsync

    def unlink_between_signals(path):
        kill("SIGINT")
        kill("SIGHUP")
        unlink(path)
        kill("SIGINT")

    def fsync_before_a_signal(file):
        fsync(file)
        kill("SIGTERM")

    os.unlink, os.fsync = unlink_between_signals, fsync_before_a_signal


def during_the_computation_of_the_error(name):
    QuantizedTable.error = lambda *_: kill(name)


def during_the_last_write_but_ignored(name):
    signal.signal(getattr(signal, name), signal.SIG_IGN)  # as nohup does
    fsync = os.fsync

    def fsync_before_a_signal(file):
        fsync(file)
        kill(name)

    os.fsync = fsync_before_a_signal


if __name__ == "__main__":
    separator = sys.argv.index("--")
    moment, *arguments = sys.argv[1:separator]
    globals()[moment](*arguments)
    sys.argv = ["embag", *sys.argv[separator + 1 :]]
    sys.exit(main())

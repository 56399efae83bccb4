"""Run the command line with a terminal as standard error, and print the terminal's contents."""

import contextlib
import os
import pty
import sys

from embag.cli import main

reading, terminal = pty.openpty()
os.dup2(terminal, 2)
status = main(sys.argv[1:])
os.close(terminal)
os.close(2)
with contextlib.suppress(OSError):  # EIO, where all has been read
    while printed := os.read(reading, 4096):
        os.write(1, printed)
sys.exit(status)

"""Run the command line where a package is not installed.

Run as ``run_without_package.py PACKAGE COMMAND ...``.
"""

import sys

package, *command = sys.argv[1:]
sys.modules[package] = None

from embag.cli import main  # noqa: E402

sys.exit(main(command))

"""Run the command line of cli/ as ``python -m embag``."""

from embag.cli import main

raise SystemExit(main())

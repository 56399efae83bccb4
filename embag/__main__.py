"""Makes ``python -m embag`` the command line of cli.py."""

from embag.cli import main

raise SystemExit(main())

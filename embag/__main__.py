"""Makes ``python -m embag`` the command line of cli/."""

from embag.cli import main

raise SystemExit(main())

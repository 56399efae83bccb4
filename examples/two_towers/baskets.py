"""Make the modules of examples/baskets importable: they read, split and evaluate the purchases."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "baskets"))

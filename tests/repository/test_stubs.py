"""The stub of the compiled kernels matches their signatures."""

import runpy
from pathlib import Path

TOOL = Path(__file__).parents[2] / "tools" / "stubs.py"


def test_the_stub_of_the_kernels_is_generated():
    tool = runpy.run_path(str(TOOL))
    assert tool["PATH"].read_text() == tool["stubs"](), "run python -m tools.stubs"

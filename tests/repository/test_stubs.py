"""The stub of the compiled kernels matches their signatures."""

from tools import stubs


def test_the_stub_of_the_kernels_is_generated():
    assert stubs.PATH.read_text() == stubs.stubs(), "run python -m tools.stubs"

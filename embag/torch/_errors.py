"""Errors that code written for torch catches as well: torch raises RuntimeError for most of them.

Tested in tests/bridges/test_torch_operators.py.
"""

from typing import NoReturn


class RuntimeIndexError(IndexError, RuntimeError):
    """An id is out of range. This is an IndexError, and a RuntimeError as in torch."""


class RuntimeValueError(ValueError, RuntimeError):
    """An argument has a wrong value. This is a ValueError, and a RuntimeError as in torch."""


_KINDS: dict[type, type[Exception]] = {
    IndexError: RuntimeIndexError,
    ValueError: RuntimeValueError,
}


def raise_as_torch(error: Exception) -> NoReturn:
    """Raise an error of embag as one that is a RuntimeError as well."""
    kind = _KINDS.get(type(error))
    if kind is None:
        raise error
    raise kind(*error.args).with_traceback(error.__traceback__) from None

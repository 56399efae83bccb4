"""Arrays of other libraries (torch, jax, ...) in the memory of the CPU, read in place by DLPack.

Tested in tests/bridges/test_dlpack.py.
"""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embag._arguments import describe

_ON_HOST = (1, 3)  # kDLCPU, kDLCUDAHost


def exports(value: Any) -> bool:
    """Return whether an object exports its memory by DLPack."""
    return hasattr(type(value), "__dlpack__") and hasattr(type(value), "__dlpack_device__")


def as_array(value: Any, name: str) -> NDArray[Any]:
    """Return an array in the memory of an object that exports it."""
    try:
        device, _ = value.__dlpack_device__()
        if device in _ON_HOST:
            return _import(value)
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(
            f"{name} must be an array that NumPy can read, got {describe(value)}: "
            f"{_first_line(error)}{_remedy(value, name)}"
        ) from None
    raise ValueError(
        f"{name} must be in the memory of the CPU, got {describe(value)} on DLPack's device "
        f"{int(device)}: pass a copy on the CPU"
    )


def _import(value: Any) -> NDArray[Any]:
    """Import an array; one of bfloat16, which NumPy does not have, as that of ml_dtypes."""
    if not str(getattr(value, "dtype", "")).endswith("bfloat16"):
        array: NDArray[Any] = np.from_dlpack(value)
        return array
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        from embag._files.headers import numpy_dtype  # noqa: PLC0415

        return np.from_dlpack(value.view(torch.int16)).view(numpy_dtype("bfloat16"))
    return np.asarray(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]


def _remedy(value: Any, name: str) -> str:
    return f": pass {name}.detach()" if getattr(value, "requires_grad", False) is True else ""

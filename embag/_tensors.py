"""Tensors of other libraries as arrays in the same memory.

A type with `__dlpack__` and `__dlpack_device__` is a tensor: of torch, JAX, CuPy, TensorFlow, or
any library of the Python array API standard. The type decides, never the values. None of these
packages is imported here.

NumPy reads the memory by DLPack, which has two exceptions. NumPy refuses bfloat16 and the 8-bit
floats: libraries whose own conversion to NumPy knows the dtypes of `ml_dtypes` convert those. And
a torch tensor is read by its method `numpy`, which refuses what an export by DLPack would get
wrong, such as a pending negation.

Tested in tests/bridges/test_tensors.py.
"""

import sys
from typing import Any

import numpy as np

# DLPack's numbers of the memory of CPUs, and of that which CUDA and ROCm allocate for hosts.
_HOST_DEVICES = frozenset({1, 3, 11})
_NOT_IN_NUMPY = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})


def is_tensor(kind: type) -> bool:
    """Return whether objects of a type are tensors. Arrays and Arrow columns are not."""
    return (
        hasattr(kind, "__dlpack__")
        and hasattr(kind, "__dlpack_device__")
        and not issubclass(kind, np.ndarray)
        and not hasattr(kind, "__arrow_c_array__")
    )


def as_ndarray(value: Any, name: str) -> Any:
    """Return a tensor as an array in its memory, and anything else unchanged.

    A nested tensor of torch is returned unchanged, too. Raises ValueError for a tensor whose memory
    NumPy cannot read.
    """
    kind = type(value)
    if not is_tensor(kind):
        return value
    torch_tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    is_torch = torch_tensor is not None and issubclass(kind, torch_tensor)
    if is_torch and value.is_nested:
        return value
    try:
        problem = _problem_of_torch(value, name) if is_torch else _problem_of_dlpack(value)
        if problem is None:
            return _read_torch(value) if is_torch else _read_dlpack(value)
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # a library may raise anything
        problem = f"be readable by NumPy, got {kind.__name__}: {error}"
    raise ValueError(f"{name} must {problem}")


def _problem_of_dlpack(value: Any) -> str | None:
    device = int(value.__dlpack_device__()[0])
    if device in _HOST_DEVICES:
        return None
    seen = f"{type(value).__name__} on device type {device} of DLPack"
    return f"be in host memory, got {seen}: copy it to the host"


def _read_dlpack(value: Any) -> Any:
    if getattr(getattr(value, "dtype", None), "name", None) in _NOT_IN_NUMPY:
        return np.asarray(value)
    return np.from_dlpack(value)


def _problem_of_torch(tensor: Any, name: str) -> str | None:
    if tensor.device.type != "cpu":
        return f"be on the CPU, got device {tensor.device}: pass {name}.cpu()"
    if tensor.layout is not sys.modules["torch"].strided:
        return f"be dense, got layout {tensor.layout}: pass {name}.to_dense()"
    if tensor.requires_grad:
        return (
            "not require a gradient, got a tensor that does: "
            f"pass {name}.detach(), or use embag.torch"
        )
    return None


def _read_torch(tensor: Any) -> Any:
    check_storage(tensor)
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _NOT_IN_NUMPY:
        return tensor.numpy()
    from embag._files.headers import numpy_dtype  # noqa: PLC0415  # it imports _arguments.py

    torch = sys.modules["torch"]
    bits = torch.int16 if tensor.itemsize == 2 else torch.int8
    return tensor.view(bits).numpy().view(numpy_dtype(dtype))


def check_storage(tensor: Any) -> None:
    """Raise if the storage of a torch tensor has become too small (`resize_` of the storage)."""
    extent = tensor.numel()  # in entries, from the first in memory to the last
    if extent and not tensor.is_contiguous():
        extent = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    needed = (tensor.storage_offset() + extent) * tensor.itemsize
    if extent and tensor.untyped_storage().nbytes() < needed:
        raise RuntimeError(
            f"a tensor must have storage of {needed} bytes, got {tensor.untyped_storage().nbytes()}"
        )

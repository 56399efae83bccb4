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
        if not is_torch:
            problem = _problem_of_dlpack(value)
            if problem is None:
                return _read_dlpack(value)
        else:
            # Methods of a subclass, and functions that watch all calls, may return anything.
            with sys.modules["torch"]._C.DisableTorchFunction():
                problem = _problem_of_torch(value, name)
                if problem is None:
                    return _read_torch(value)
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
    array = np.from_dlpack(value)
    if array.flags.owndata and array.size:  # NumPy allocates memory where a tensor has none
        raise RuntimeError("the tensor has no memory")
    return array


def _problem_of_torch(tensor: Any, name: str) -> str | None:
    of = sys.modules["torch"].Tensor
    device, layout = of.device.__get__(tensor), of.layout.__get__(tensor)
    if device.type != "cpu":
        return f"be on the CPU, got device {device}: pass {name}.cpu()"
    if layout is not sys.modules["torch"].strided:
        return f"be dense, got layout {layout}: pass {name}.to_dense()"
    if of.requires_grad.__get__(tensor):
        return (
            "not require a gradient, got a tensor that does: "
            f"pass {name}.detach(), or use embag.torch"
        )
    return None


def _read_torch(tensor: Any) -> Any:
    torch = sys.modules["torch"]
    check_storage(tensor)
    dtype = str(torch.Tensor.dtype.__get__(tensor)).removeprefix("torch.")
    if dtype in _NOT_IN_NUMPY:
        from embag._files.headers import numpy_dtype  # noqa: PLC0415  # it imports _arguments.py

        like = numpy_dtype(dtype)
        bits = torch.int16 if like.itemsize == 2 else torch.int8
        return torch.Tensor.numpy(torch.Tensor.view(tensor, bits)).view(like)
    return torch.Tensor.numpy(tensor)


def check_storage(tensor: Any) -> None:
    """Raise if the storage of a torch tensor is too small, or no memory of this process.

    `resize_` of a storage makes it smaller, and functional tensors have none.
    """
    of = sys.modules["torch"].Tensor
    extent = of.numel(tensor)  # in entries, from the first in memory to the last
    if extent and not of.is_contiguous(tensor):
        extent = 1 + sum(
            (size - 1) * stride
            for size, stride in zip(of.size(tensor), of.stride(tensor), strict=True)
        )
    needed = (of.storage_offset(tensor) + extent) * of.itemsize.__get__(tensor)
    n_bytes = of.untyped_storage(tensor).nbytes()
    if extent and n_bytes < needed:
        raise RuntimeError(f"a tensor must have storage of {needed} bytes, got {n_bytes}")
    if extent and of.data_ptr(tensor) == 0:
        raise RuntimeError("the tensor has no memory")

"""Tensors as arrays, and arrays as tensors, in the same memory.

Tested in tests/bridges/test_torch_bridge.py.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embag._arguments import describe
from embag._files.headers import numpy_dtype
from embag._process import threads
from embag._tensors import check_storage
from embag.sparse_rows import SparseRows

AnyArray = NDArray[Any]

LOW = frozenset({torch.float16, torch.bfloat16})
TABLES = frozenset({torch.float32, torch.float64}) | LOW
TABLES_RULE = "float32, float64, float16 or bfloat16"
INTEGERS = frozenset(
    {torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
FACTORS = TABLES | INTEGERS
PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None)})


def sums_dtype(table: torch.Tensor) -> torch.dtype:
    """Return the dtype in which the rows of a table are summed."""
    return torch.float32 if table.dtype in LOW else table.dtype


def check(
    tensor: Any, name: str, dtypes: frozenset[torch.dtype], rule: str, device: str = "cpu"
) -> None:
    """Raise unless NumPy can use the memory of a tensor. Values are checked by embag."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(tensor)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {rule}, got {tensor.dtype}")
    if tensor.is_nested:
        raise ValueError(f"{name} must not be nested with torch.strided: use torch.jagged")
    if not (tensor.is_meta if device == "meta" else tensor.is_cpu):
        place = "meta as input and weight are" if device == "meta" else "the CPU"
        raise ValueError(f"{name} must be on {place}, got device {tensor.device}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")


def check_table(weight: Any, name: str = "weight", device: str = "cpu") -> None:
    """Raise unless a tensor can be a table."""
    check(weight, name, TABLES, TABLES_RULE, device)


def check_inputs(input: Any, offsets: Any, sample: Any, device: str = "cpu") -> None:
    """Raise unless embag can read the tensors of a lookup."""
    check(input, "input", INTEGERS, "integers", device)
    if offsets is not None:
        check(offsets, "offsets", INTEGERS, "integers", device)
    if sample is not None:
        check(sample, "per_sample_weights", FACTORS, "real numbers", device)


def is_traced(*tensors: Any) -> bool:
    """Return whether tensors are more than memory: traced, fake, or of another class."""
    return (
        not PLAIN.issuperset(map(type, tensors))
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or (has_transforms() and any(map(_is_functional, tensors)))
    )


def has_transforms() -> bool:
    """Return whether a transform of ``torch.func`` is active, which autograd functions know."""
    return torch._C._are_functorch_transforms_active()  # type: ignore[no-any-return]


def _is_functional(tensor: torch.Tensor | None) -> bool:
    """Return whether a tensor is one of ``torch.func.functionalize``, which have no memory."""
    return tensor is not None and torch._is_functional_tensor(tensor)


def as_array(
    tensor: torch.Tensor | None, dtype: torch.dtype | None = None, in_place: bool = False
) -> Any:
    """Return an array in the memory of a tensor, or of a converted copy."""
    if tensor is None:
        return None
    if type(tensor) not in PLAIN:  # its methods may return anything
        with torch._C.DisableTorchFunction():
            tensor = torch.Tensor.as_subclass(tensor, torch.Tensor)
    if not (
        tensor.is_contiguous()
        and tensor.storage_offset() == 0
        and tensor.untyped_storage().nbytes() >= tensor.nbytes
        and tensor.data_ptr()
    ):
        check_storage(tensor)
    if tensor.requires_grad:
        tensor = tensor.detach()
    if dtype is not None:
        tensor = tensor.to(dtype)
    if tensor.dtype is torch.bfloat16:  # which NumPy has not
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    # `force` computes a pending negation or conjugation, in a copy.
    return tensor.numpy(force=not in_place)


def as_tensor(array: AnyArray) -> torch.Tensor:
    """Return a tensor in the memory of an array of floats."""
    if array.dtype.char not in "efd":  # bfloat16, which has a name only
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_sparse_tensor(rows: SparseRows, dtype: torch.dtype) -> torch.Tensor:
    """Return a coalesced sparse tensor, in the memory of `rows.values` if that has this dtype."""
    return torch.sparse_coo_tensor(
        # A copy of 8 bytes a row: `indices` is read-only, and tensors cannot be.
        torch.from_numpy(rows.indices[None].copy()),
        torch.from_numpy(rows.values).to(dtype),
        rows.shape,
        is_coalesced=True,
        check_invariants=False,
    )


def num_threads() -> int:
    """Return the largest number of threads of a call: both libraries limit it."""
    limit: int = torch.get_num_threads()
    return 1 if limit == 1 else min(limit, threads.get_num_threads())

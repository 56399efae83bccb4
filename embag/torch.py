"""`embag.torch.embedding_bag`: the same operation for tensors, with autograd.

A CPU tensor and an array can share memory, so this module is only glue: an autograd function
passes the arrays of its tensors to `embag.embedding_bag` and `embag.embedding_bag_backward`,
and returns their results as tensors. Tables, results and gradients are not copied.

Importing `embag` does not import torch. Importing this module does.

Tested in tests/bridges/test_torch_bridge.py.
"""

import operator
from typing import Any, Literal

from embag import functional
from embag._arguments import describe
from embag._process import threads
from embag._types import Invalid
from embag.backward import embedding_bag_backward
from embag.sparse_rows import SparseRows

try:
    import torch
except ImportError as error:
    raise ImportError("embag.torch needs torch: pip install 'embag-cpu[torch]'") from error

__all__ = ["EmbeddingBag", "embedding_bag"]

_TABLES = frozenset({torch.float32, torch.float64})
_INTEGERS = frozenset(
    {torch.int8, torch.int16, torch.int32, torch.int64}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)
_FACTORS = _TABLES | _INTEGERS | {torch.float16, torch.bfloat16}


def embedding_bag(
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
    *,
    default_idx: int | None = None,
    invalid: Invalid = "raise",
    normalize: bool = False,
) -> torch.Tensor:
    """Gather rows of a table and reduce them per bag, with gradients.

    This replaces ``torch.nn.functional.embedding_bag`` for tensors on the CPU. It has the same
    arguments in the same order, and three more by keyword. The semantics are those of
    `embag.embedding_bag`.

    Parameters
    ----------
    input : Tensor of int, shape (n_indices,) or (n_bags, bag_size)
        The ids: which rows to gather. 1-D ids need `offsets`; each row of 2-D ids is a bag.
    weight : Tensor of float32 or float64, shape (n_rows, dim)
        The table.
    offsets : Tensor of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`.
    max_norm : float, optional
        Each row that occurs in a bag and has a larger norm is scaled down in `weight` itself,
        before the reduction. The scaling has no gradient.
    norm_type : float, optional
        The p of this p-norm: greater than 0, or ``inf``.
    scale_grad_by_freq : bool, optional
        If True, divide the gradient of each row by the number of its occurrences in bags. Not
        with ``mode="max"`` and ``mode="min"``.
    mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
        How the rows of a bag are reduced.
    sparse : bool, optional
        If True, the gradient of `weight` is a coalesced sparse tensor of the rows that occur. Not
        with ``mode="max"`` and ``mode="min"``.
    per_sample_weights : Tensor, shape of `input`, optional
        A factor for each gathered row, computed in the dtype of `weight`. Not with
        ``mode="max"`` and ``mode="min"``. Its gradient has its own dtype.
    include_last_offset : bool, optional
        If True, `offsets` has one more entry: the end of the last bag.
    padding_idx : int, optional
        A row that is skipped and has no gradient; a negative number counts from the end.
    default_idx : int, optional
        The row of a bag in which no id counts; a negative number counts from the end. It gets
        the gradient of the bag.
    invalid : {"raise", "skip"} or int, optional
        What to do with ids out of range: raise an IndexError, skip them like padding, or look up
        this row.
    normalize : bool, optional
        If True, divide each row of the result by its Euclidean norm.

    Returns
    -------
    Tensor, shape (n_bags, dim)
        The reduced bags, in the dtype of `weight`. The result can be differentiated once, with
        respect to `weight` and `per_sample_weights`, in backward mode.

    Raises
    ------
    TypeError
        If an argument is not a tensor, or has the wrong kind or dtype.
    ValueError
        If a tensor is sparse or not on the CPU, a shape, an offset or an option is wrong, or
        arguments contradict each other.
    IndexError
        If an id is out of range and `invalid` is "raise". The message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If another thread changes a tensor during the call, and embag notices it. If a tensor that
        backward needs was changed after forward, as always in torch.

    See Also
    --------
    embag.embedding_bag : The same for arrays, with all rules.
    embag.embedding_bag_backward : The gradients.
    EmbeddingBag : The module.

    Notes
    -----
    Tensors are read in place like arrays. The result and the gradients are in the memory that
    embag returned; only the row numbers of a sparse gradient are copied. Weights of another
    dtype are converted first. A call uses at most ``torch.get_num_threads()`` threads, and at
    most `embag.get_num_threads`. ``torch.compile`` makes a graph break at a call.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> weight = torch.arange(8.0).reshape(4, 2).requires_grad_()
    >>> input, offsets = torch.tensor([1, 2, 1]), torch.tensor([0, 2])
    >>> bags = embag.torch.embedding_bag(input, weight, offsets, mode="sum")
    >>> bags.tolist()
    [[6.0, 8.0], [2.0, 3.0]]
    >>> bags.sum().backward()
    >>> weight.grad.tolist()
    [[0.0, 0.0], [2.0, 2.0], [1.0, 1.0], [0.0, 0.0]]
    """
    call = _embedding_bag
    if torch.compiler.is_compiling():
        # A decorator would import the compiler, which takes a second, in every program.
        call = torch.compiler.disable(call)
    return call(
        input,
        weight,
        offsets,
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        per_sample_weights,
        include_last_offset,
        padding_idx,
        default_idx,
        invalid,
        normalize,
    )


class EmbeddingBag(torch.nn.EmbeddingBag):
    """A ``torch.nn.EmbeddingBag`` that computes with embag.

    The constructor, `from_pretrained`, the parameters and the state dict are those of torch.

    Attributes
    ----------
    default_idx, invalid, normalize
        As in `embag.torch.embedding_bag`. Set them after construction:
        ``bags.invalid = "skip"``.

    See Also
    --------
    embedding_bag : The function that it calls.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> bags = embag.torch.EmbeddingBag(10, 3, mode="sum")
    >>> bags(torch.tensor([[1, 2], [3, 4]])).shape
    torch.Size([2, 3])
    """

    default_idx: int | None = None
    invalid: Invalid = "raise"
    normalize: bool = False

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Gather rows and reduce them per bag.

        Parameters
        ----------
        input, offsets, per_sample_weights : Tensor
            As in `embag.torch.embedding_bag`.

        Returns
        -------
        Tensor, shape (n_bags, embedding_dim)
            The reduced bags.
        """
        return embedding_bag(
            input,
            self.weight,
            offsets,
            self.max_norm,
            self.norm_type,
            self.scale_grad_by_freq,
            self.mode,
            self.sparse,
            per_sample_weights,
            self.include_last_offset,
            self.padding_idx,
            default_idx=self.default_idx,
            invalid=self.invalid,
            normalize=self.normalize,
        )

    def extra_repr(self) -> str:
        """Return the options for the repr: those of torch, and those of embag that are set."""
        parts = [super().extra_repr()]
        for name in ("default_idx", "invalid", "normalize"):
            value = getattr(self, name)
            if value != getattr(EmbeddingBag, name):
                parts.append(f"{name}={value!r}")
        return ", ".join(parts)


def _embedding_bag(input: Any, weight: Any, offsets: Any, *options: Any) -> torch.Tensor:
    """Check the tensors and call the autograd function."""
    sample = options[5]
    _check(input, "input", _INTEGERS, "integers")
    _check(weight, "weight", _TABLES, "float32 or float64")
    if offsets is not None:
        _check(offsets, "offsets", _INTEGERS, "integers")
    if sample is not None:
        _check(sample, "per_sample_weights", _FACTORS, "real numbers")
    if torch.is_inference_mode_enabled():
        # No gradient can be needed. A small call takes half the time this way.
        return torch.from_numpy(_reduce(False, input, weight, offsets, *options)[0])
    # Passed along, because inside the function gradients are always disabled.
    result: torch.Tensor = _EmbeddingBag.apply(
        torch.is_grad_enabled(), input, weight, offsets, *options
    )
    return result


def _reduce(
    wants_winners: bool,
    input: torch.Tensor,
    weight: torch.Tensor,
    offsets: torch.Tensor | None,
    max_norm: float | None,
    norm_type: float,
    scale_grad_by_freq: bool,
    mode: Any,
    sparse: bool,
    per_sample_weights: torch.Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    default_idx: int | None,
    invalid: Invalid,
    normalize: bool,
) -> tuple[Any, Any]:
    """Return the arrays of the output and, with `wants_winners`, of the rows of the maxima."""
    result = functional.embedding_bag(
        _as_array(input),
        # max_norm writes to it, so it must not be a copy.
        _as_array(weight, in_place=max_norm is not None),
        _as_array(offsets),
        max_norm,
        norm_type,
        scale_grad_by_freq,
        mode,
        sparse,
        _as_array(per_sample_weights, weight.dtype),
        include_last_offset,
        padding_idx,
        return_max_indices=wants_winners and mode in ("max", "min"),
        num_threads=_num_threads(),
        default_idx=default_idx,
        invalid=invalid,
        normalize=normalize,
    )
    if max_norm is not None:
        torch.autograd.graph.increment_version(weight)
    return result if isinstance(result, tuple) else (result, None)


def _check(tensor: Any, name: str, dtypes: frozenset[torch.dtype], rule: str) -> None:
    """Raise unless NumPy can use the memory of a tensor. Values are checked by embag."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(tensor)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {rule}, got {tensor.dtype}")
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, got device {tensor.device}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")


# The indices of `weight` and `per_sample_weights` among the arguments of the function below.
_DIFFERENTIABLE = (2, 9)


class _EmbeddingBag(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_enabled: bool,
        input: torch.Tensor,
        weight: torch.Tensor,
        offsets: torch.Tensor | None,
        *options: Any,
    ) -> torch.Tensor:
        needs_weight, needs_sample = (ctx.needs_input_grad[i] for i in _DIFFERENTIABLE)
        _, _, scale_grad_by_freq, mode, sparse, sample, include_last_offset, *rows = options
        padding_idx, default_idx, invalid, normalize = rows
        result, winners = _reduce(grad_enabled and needs_weight, input, weight, offsets, *options)
        if winners is not None:
            winners = torch.from_numpy(winners)
        # Saved tensors must not change before the backward pass. As in torch, the table may
        # (an optimizer's step), unless the gradient needs its values.
        table = weight if needs_sample or normalize else None
        ctx.save_for_backward(input, offsets, sample, table, winners)
        ctx.shape = weight.shape
        ctx.options = {
            "scale_grad_by_freq": scale_grad_by_freq,
            "mode": mode,
            "sparse": sparse,
            "include_last_offset": include_last_offset,
            # Already checked; as ints they cannot change any more.
            "padding_idx": None if padding_idx is None else operator.index(padding_idx),
            "default_idx": None if default_idx is None else operator.index(default_idx),
            "invalid": invalid if isinstance(invalid, str) else operator.index(invalid),
            "normalize": bool(normalize),
        }
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        needs = *(ctx.needs_input_grad[i] for i in _DIFFERENTIABLE), ctx.shape, ctx.options
        gradients = _Gradients.apply(needs, grad_output, *ctx.saved_tensors)
        by_place = dict(zip(_DIFFERENTIABLE, gradients, strict=True))
        return tuple(by_place.get(i) for i in range(len(ctx.needs_input_grad)))


class _Gradients(torch.autograd.Function):
    """The gradients, as a function of everything they depend on.

    So any way to differentiate them again ends in the error below.
    """

    @staticmethod
    def forward(
        ctx: Any,
        needs: tuple[bool, bool, torch.Size, dict[str, Any]],
        grad_output: torch.Tensor,
        input: torch.Tensor,
        offsets: torch.Tensor | None,
        per_sample_weights: torch.Tensor | None,
        weight: torch.Tensor | None,
        max_indices: torch.Tensor | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        needs_weight, needs_sample, shape, options = needs
        wrt: Literal["weight", "per_sample_weights"] | None = None
        if not (needs_weight and needs_sample):
            wrt = "weight" if needs_weight else "per_sample_weights"
        if weight is None:
            # Only the shape and the dtype count: one number stands for the table.
            weight = grad_output.new_zeros(()).expand(shape)
        grads = embedding_bag_backward(
            _as_array(grad_output),
            _as_array(input),
            _as_array(weight),
            _as_array(offsets),
            per_sample_weights=_as_array(per_sample_weights, weight.dtype),
            max_indices=_as_array(max_indices),
            wrt=wrt,
            num_threads=_num_threads(),
            **options,
        )
        of_weight = of_sample = None
        if isinstance(grads.weight, SparseRows):
            of_weight = _as_sparse_tensor(grads.weight)
        elif grads.weight is not None:
            of_weight = torch.from_numpy(grads.weight)
        if grads.per_sample_weights is not None:
            # In the dtype of `weight`; autograd casts it to that of the weights.
            of_sample = torch.from_numpy(grads.per_sample_weights)
        return of_weight, of_sample

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError(
            "embag.torch.embedding_bag must be differentiated at most once, got twice"
        )


def _as_array(
    tensor: torch.Tensor | None, dtype: torch.dtype | None = None, in_place: bool = False
) -> Any:
    """Return an array in the memory of a tensor, or of a converted copy."""
    if tensor is None:
        return None
    _check_storage(tensor)
    if in_place:
        return tensor.detach().numpy()
    # `force` detaches, and computes a pending negation or conjugation.
    return (tensor if dtype is None else tensor.to(dtype)).numpy(force=True)


def _check_storage(tensor: torch.Tensor) -> None:
    """Raise if the storage of a tensor has become too small (`resize_` of the storage)."""
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


def _as_sparse_tensor(rows: SparseRows) -> torch.Tensor:
    """Return a coalesced sparse tensor that shares the memory of `rows.values`."""
    return torch.sparse_coo_tensor(
        # A copy of 8 bytes a row: `indices` is read-only, and tensors cannot be.
        torch.from_numpy(rows.indices[None].copy()),
        torch.from_numpy(rows.values),
        rows.shape,
        is_coalesced=True,
        check_invariants=False,
    )


def _num_threads() -> int:
    limit: int = torch.get_num_threads()
    return min(limit, threads.get_num_threads())

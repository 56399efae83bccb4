"""The same for tensors: `embag.torch.embedding_bag` in the place of torch's own.

A CPU tensor and an array are two views of the same memory, so this is only glue: an
autograd function that hands the arrays of its tensors to `embag.embedding_bag` and
`embag.embedding_bag_backward`, and what they return back as tensors. Tables, results and
gradients are not copied.

Importing `embag` does not import torch; importing this does, and needs it.

Tested in tests/test_torch_bridge.py.
"""

import operator
from typing import Any, Literal

from embag import _threads, functional
from embag._arguments import describe
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
) -> torch.Tensor:
    """Gather rows of a table and reduce them per bag, with gradients.

    Takes the place of ``torch.nn.functional.embedding_bag`` for tensors on the CPU: the
    arguments and their order are the same, the semantics are `embag.embedding_bag`'s.

    Parameters
    ----------
    input : Tensor of int, shape (n_indices,) or (n_bags, bag_size)
        The rows to gather. 1-D with `offsets`; 2-D has a bag in each row.
    weight : Tensor of float32 or float64, shape (n_rows, dim)
        The table.
    offsets : Tensor of int, shape (n_bags,) or (n_bags + 1,), optional
        Where each bag starts in `input`.
    max_norm : float, optional
        Rows that occur in a bag and whose norm exceeds it are scaled down in `weight`
        itself, before the reduction and outside of the gradient.
    norm_type : float, optional
        The p of that norm: greater than 0, or ``inf``.
    scale_grad_by_freq : bool, optional
        Divide the gradient of each row by how often it occurs in a bag. Not with
        ``mode="max"``.
    mode : {"mean", "sum", "max"}, optional
        The reduction.
    sparse : bool, optional
        Make the gradient of `weight` a coalesced sparse tensor of the rows that occur.
        Not with ``mode="max"``.
    per_sample_weights : Tensor, shape of `input`, optional
        Factors for the rows, with ``mode="sum"`` only. Computed in the dtype of
        `weight`; the gradient is of their own.
    include_last_offset : bool, optional
        `offsets` has one entry more: where the last bag ends.
    padding_idx : int, optional
        A row, which may be counted from the end, that is left out and has no gradient.

    Returns
    -------
    Tensor, shape (n_bags, dim)
        The reduced bags, of the dtype of `weight`. It can be differentiated once, by
        `weight` and `per_sample_weights`, in backward mode.

    Raises
    ------
    TypeError
        For an argument that is no tensor, or of the wrong kind or dtype.
    ValueError
        For a tensor that is sparse or not on the CPU, for a wrong shape, offset or
        option, or arguments that do not go together.
    IndexError
        For an index out of range: the message names the first.
    MemoryError
        If there is not enough memory.
    RuntimeError
        If a tensor is changed during the call by other code, and embag noticed; or, as
        always with torch, changed between forward and backward where backward needs it.

    See Also
    --------
    embag.embedding_bag : the forward pass for arrays, with all the rules.
    embag.embedding_bag_backward : the gradients.
    EmbeddingBag : the module.

    Notes
    -----
    Tensors are read in place like arrays, and the result and the gradients are in the
    memory that embag returned; only the row numbers of a sparse gradient are copied.
    Weights of another dtype are converted first. A call uses no more threads than
    ``torch.get_num_threads()``, nor than `embag.get_num_threads`. Under ``torch.compile``
    it is a graph break.

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
        # Decorating would import the compiler, a second's work, for everyone.
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
    )


class EmbeddingBag(torch.nn.EmbeddingBag):
    """A ``torch.nn.EmbeddingBag`` that computes with embag.

    The constructor, `from_pretrained`, the parameters and the state dict are torch's.

    See Also
    --------
    embedding_bag : what it calls.

    Examples
    --------
    >>> import torch
    >>> import embag.torch
    >>> bags = embag.torch.EmbeddingBag(10, 3, mode="sum")
    >>> bags(torch.tensor([[1, 2], [3, 4]])).shape
    torch.Size([2, 3])
    """

    def forward(
        self,
        input: torch.Tensor,
        offsets: torch.Tensor | None = None,
        per_sample_weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Reduce the bags of `input`.

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
        )


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
        # No gradient of any kind can be wanted: a small call takes half the time.
        return torch.from_numpy(_reduce(False, input, weight, offsets, *options)[0])
    # Inside of the function gradients are always off: whether they are on is asked here.
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
) -> tuple[Any, Any]:
    """Return the arrays of the output and, if they are wanted, of the winning rows."""
    result = functional.embedding_bag(
        _as_array(input),
        # Written to by max_norm, and then never to be a copy.
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
        return_max_indices=wants_winners and mode == "max",
        num_threads=_num_threads(),
    )
    if max_norm is not None:
        torch.autograd.graph.increment_version(weight)
    return result if isinstance(result, tuple) else (result, None)


def _check(tensor: Any, name: str, dtypes: frozenset[torch.dtype], rule: str) -> None:
    """Raise unless NumPy can have the tensor's memory; its values are embag's to check."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {describe(tensor)}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name} must be {rule}, got {tensor.dtype}")
    if not tensor.is_cpu:
        raise ValueError(f"{name} must be on the CPU, got device {tensor.device}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor, got layout {tensor.layout}")


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
        _, _, needs_weight, *_, needs_sample, _, _ = ctx.needs_input_grad
        _, _, scale_grad_by_freq, mode, sparse, sample, include_last_offset, padding_idx = options
        result, winners = _reduce(grad_enabled and needs_weight, input, weight, offsets, *options)
        if winners is not None:
            winners = torch.from_numpy(winners)
        # What is saved must not change before the backward pass. As in torch, the table
        # may (an optimizer's step), unless the gradient of the weights needs its values.
        table = weight if needs_sample else None
        ctx.save_for_backward(input, offsets, sample, table, winners)
        ctx.shape = weight.shape
        ctx.options = {
            "scale_grad_by_freq": scale_grad_by_freq,
            "mode": mode,
            "sparse": sparse,
            "include_last_offset": include_last_offset,
            # Checked by now; a number that nobody can change.
            "padding_idx": None if padding_idx is None else operator.index(padding_idx),
        }
        return torch.from_numpy(result)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        _, _, needs_weight, *_, needs_sample, _, _ = ctx.needs_input_grad
        needs = needs_weight, needs_sample, ctx.shape, ctx.options
        weight, sample = _Gradients.apply(needs, grad_output, *ctx.saved_tensors)
        return (None, None, weight, *6 * (None,), sample, None, None)


class _Gradients(torch.autograd.Function):
    """The gradients, as a function of all that they depend on.

    So whoever asks for their derivatives meets an error, by whichever way.
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
            # Of weight's dtype; autograd casts it to that of the weights, where they differ.
            of_sample = torch.from_numpy(grads.per_sample_weights)
        return of_weight, of_sample

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise RuntimeError("embag.torch.embedding_bag can be differentiated once, got twice")


def _as_array(
    tensor: torch.Tensor | None, dtype: torch.dtype | None = None, in_place: bool = False
) -> Any:
    """Return an array in the memory of a tensor, unless it must be converted and may be."""
    if tensor is None:
        return None
    _check_storage(tensor)
    if in_place:
        return tensor.detach().numpy()
    # `force` detaches, and resolves what torch has not computed yet (a negation).
    return (tensor if dtype is None else tensor.to(dtype)).numpy(force=True)


def _check_storage(tensor: torch.Tensor) -> None:
    """Raise if the memory of a tensor was taken from it (`resize_` of its storage)."""
    n_entries = tensor.numel()  # from the first in memory to the last
    if n_entries and not tensor.is_contiguous():
        n_entries = 1 + sum(
            (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
        )
    needed = (tensor.storage_offset() + n_entries) * tensor.itemsize
    if n_entries and tensor.untyped_storage().nbytes() < needed:
        raise RuntimeError(
            f"a tensor must have storage of {needed} bytes, got {tensor.untyped_storage().nbytes()}"
        )


def _as_sparse_tensor(rows: SparseRows) -> torch.Tensor:
    """Return a coalesced sparse tensor in the memory of the values of `rows`."""
    return torch.sparse_coo_tensor(
        # A copy, of 8 bytes a row: these are read-only, which no tensor can be.
        torch.from_numpy(rows.indices[None].copy()),
        torch.from_numpy(rows.values),
        rows.shape,
        is_coalesced=True,
        check_invariants=False,
    )


def _num_threads() -> int:
    limit: int = torch.get_num_threads()
    return min(limit, _threads.get_num_threads())

"""`EmbeddingBag`: a table and the options of its lookups in one object, as in torch.

Its attributes are its only state. `forward` calls `embedding_bag` and `backward` calls
`embedding_bag_backward`, each with the current values of the attributes. `update` calls the
`update` of an optimizer.

Tested in tests/gradients/test_layers.py.
"""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from embag import _arguments, _modes
from embag._types import Ids, Invalid, Mode, SampleWeights
from embag.backward import EmbeddingBagGrads, embedding_bag_backward
from embag.functional import embedding_bag
from embag.memory import aligned_empty
from embag.optim import Optimizer


class EmbeddingBag:
    """A table and its lookups: the counterpart of ``torch.nn.EmbeddingBag``.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
        The shape of the table.
    max_norm : float, optional
        At least 0. `forward` scales each row that it gathers and that has a larger norm, in
        `weight` itself.
    norm_type : float, optional
        The p of this p-norm: greater than 0, or ``inf``.
    scale_grad_by_freq : bool, optional
        If True, `backward` divides the gradient of each row by the number of its occurrences.
        Not with ``mode="max"`` and ``mode="min"``.
    mode : {"mean", "sum", "sqrtn", "max", "min"}, optional
        How the rows of a bag are reduced.
    sparse : bool, optional
        If True, `backward` returns the gradient of the table as `SparseRows`. Not with
        ``mode="max"`` and ``mode="min"``.
    _weight : ndarray of float32 or float64, optional
        The table, which is not copied. Prefer `from_pretrained`.
    include_last_offset : bool, optional
        If True, `offsets` has one more entry: the end of the last bag.
    padding_idx : int, optional
        A row that lookups skip; a negative number counts from the end. In a new table it is
        zeros.
    default_idx : int, optional
        The row of a bag in which no id counts; a negative number counts from the end.
    invalid : {"raise", "skip"} or int, optional
        What to do with ids out of range: raise an IndexError, skip them like padding, or look up
        this row.
    normalize : bool, optional
        If True, each row of the result is divided by its Euclidean norm.
    dtype : data-type, optional
        The dtype of a new table: float32 or float64.
    rng : int, Generator or other seed, optional
        The seed of a new table: an argument of ``np.random.default_rng``.

    Attributes
    ----------
    weight : ndarray, shape (num_embeddings, embedding_dim)
        The table. A new one is drawn from the standard normal distribution, in memory from
        `aligned_empty`.
    num_embeddings, embedding_dim, max_norm, norm_type, scale_grad_by_freq, mode, sparse, \
include_last_offset, padding_idx, default_idx, invalid, normalize
        The parameters of the same names. Rows are counted from the start.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If a value is out of range, or arguments contradict each other.
    MemoryError
        If there is not enough memory for the table.

    See Also
    --------
    embedding_bag : The function that `forward` calls.
    embedding_bag_backward : The function that `backward` calls.

    Notes
    -----
    Any number of threads may call one layer at the same time, as long as none writes to
    `weight`. With `max_norm` every `forward` writes to it. Concurrent calls may then read
    half-scaled rows, or scale a row twice.

    Pickles and deep copies contain the table. A loaded table is in memory that NumPy allocates;
    ``layer.weight = embag.aligned_copy(layer.weight)`` moves it to where lookups are fastest.

    References
    ----------
    The definition is that of ``torch.nn.EmbeddingBag``.

    Examples
    --------
    A step of gradient descent that moves the bags ``[1, 2]`` and ``[4]`` towards ones:

    >>> import numpy as np
    >>> import embag
    >>> layer = embag.EmbeddingBag(10, 3, mode="sum", sparse=True, rng=0)
    >>> layer
    EmbeddingBag(10, 3, mode='sum')
    >>> before = layer([1, 2, 4], [0, 2])
    >>> grads = layer.backward(before - 1, [1, 2, 4], [0, 2])
    >>> grads.weight
    SparseRows(3 of 10 rows, dim=3, float32, 60 bytes)
    >>> grads.weight.add_to(layer.weight, -0.25)
    >>> after = layer([1, 2, 4], [0, 2])
    >>> bool((abs(after - 1) < abs(before - 1)).all())
    True
    """

    num_embeddings: int
    embedding_dim: int
    max_norm: float | None
    norm_type: float
    scale_grad_by_freq: bool
    mode: Mode
    sparse: bool
    include_last_offset: bool
    padding_idx: int | None
    default_idx: int | None
    invalid: Invalid
    normalize: bool
    weight: NDArray[Any]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Mode = "mean",
        sparse: bool = False,
        _weight: NDArray[Any] | None = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        *,
        default_idx: int | None = None,
        invalid: Invalid = "raise",
        normalize: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Any = None,
    ) -> None:
        self.num_embeddings = _as_size(num_embeddings, "num_embeddings")
        self.embedding_dim = _as_size(embedding_dim, "embedding_dim")
        self.norm_type = _arguments.as_norm_type(norm_type)
        _arguments.check_flags(
            scale_grad_by_freq=scale_grad_by_freq,
            sparse=sparse,
            include_last_offset=include_last_offset,
            normalize=normalize,
        )
        _modes.check_options(_modes.as_mode(mode), sparse, scale_grad_by_freq)
        self.scale_grad_by_freq = bool(scale_grad_by_freq)
        self.mode = mode
        self.sparse = bool(sparse)
        self.include_last_offset = bool(include_last_offset)
        self.padding_idx = _as_row(padding_idx, "padding_idx", self.num_embeddings)
        self.default_idx = _as_row(default_idx, "default_idx", self.num_embeddings)
        _, stand_in = _arguments.as_invalid(invalid, self.num_embeddings)
        self.invalid = stand_in if stand_in >= 0 else invalid
        self.normalize = bool(normalize)
        shape = self.num_embeddings, self.embedding_dim
        if _weight is None:
            self.weight = _draw(shape, dtype, rng)
            if self.padding_idx is not None:
                self.weight[self.padding_idx] = 0
        else:
            _arguments.check_table(_weight, "_weight")
            if _weight.shape != shape:
                raise ValueError(f"_weight must have shape {shape}, got {_weight.shape}")
            self.weight = _weight
        self.max_norm = None
        if max_norm is not None:
            self.max_norm = _arguments.as_max_norm(max_norm, self.weight)

    @classmethod
    def from_pretrained(
        cls,
        embeddings: NDArray[Any],
        *,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        mode: Mode = "mean",
        sparse: bool = False,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        default_idx: int | None = None,
        invalid: Invalid = "raise",
        normalize: bool = False,
    ) -> EmbeddingBag:
        """Return a layer on an existing table, without a copy.

        There is no ``freeze`` as in torch: a gradient is computed only where `backward` is called.
        The options are keyword-only, so that a positional ``freeze`` is an error and not a
        `max_norm`.

        Parameters
        ----------
        embeddings : ndarray of float32 or float64, shape (num_embeddings, embedding_dim)
            The table. The layer shares its memory and does not change its padding row.
        max_norm, norm_type, scale_grad_by_freq, mode, sparse, include_last_offset, padding_idx, \
default_idx, invalid, normalize
            As in the constructor.

        Returns
        -------
        EmbeddingBag
            A layer whose `weight` is `embeddings`.

        Raises
        ------
        TypeError
            If an argument has the wrong kind or dtype.
        ValueError
            If a value is out of range, or arguments contradict each other.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> table = np.array([[1, 2], [3, 4], [5, 6]], np.float32)
        >>> layer = embag.EmbeddingBag.from_pretrained(table, padding_idx=0)
        >>> layer([[0, 1], [1, 2]])
        array([[3., 4.],
               [4., 5.]], dtype=float32)
        """
        _arguments.check_table(embeddings, "embeddings")
        num_embeddings, embedding_dim = embeddings.shape
        return cls(
            num_embeddings,
            embedding_dim,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            embeddings,
            include_last_offset,
            padding_idx,
            default_idx=default_idx,
            invalid=invalid,
            normalize=normalize,
        )

    @overload
    def forward(
        self,
        input: Ids,
        offsets: ArrayLike | None = ...,
        per_sample_weights: SampleWeights | None = ...,
        *,
        out: NDArray[Any] | None = ...,
        return_max_indices: Literal[False] = ...,
        return_n_invalid: Literal[False] = ...,
        return_n_valid: Literal[False] = ...,
        num_threads: int | None = ...,
    ) -> NDArray[Any]: ...
    @overload
    def forward(
        self,
        input: Ids,
        offsets: ArrayLike | None = ...,
        per_sample_weights: SampleWeights | None = ...,
        *,
        out: NDArray[Any] | None = ...,
        return_max_indices: bool = ...,
        return_n_invalid: bool = ...,
        return_n_valid: bool = ...,
        num_threads: int | None = ...,
    ) -> Any: ...
    def forward(
        self,
        input: Ids,
        offsets: ArrayLike | None = None,
        per_sample_weights: SampleWeights | None = None,
        *,
        out: NDArray[Any] | None = None,
        return_max_indices: bool = False,
        return_n_invalid: bool = False,
        return_n_valid: bool = False,
        num_threads: int | None = None,
    ) -> Any:
        """Gather rows of the table and reduce them per bag. Calling the layer does the same.

        Parameters
        ----------
        input, offsets, per_sample_weights, out, return_max_indices, return_n_invalid, \
return_n_valid, num_threads
            As in `embedding_bag`.

        Returns
        -------
        ndarray, shape (n_bags, embedding_dim)
            The reduced bags.
        max_indices : ndarray of int64, shape (n_bags, embedding_dim)
            With `return_max_indices`: the row that each maximum comes from.
        n_invalid : int
            With `return_n_invalid`: the number of ids that were skipped or replaced.
        n_valid : ndarray of int64, shape (n_bags,)
            With `return_n_valid`: how many ids of each bag count.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embedding_bag`.

        See Also
        --------
        embedding_bag : Describes each argument.

        Notes
        -----
        With `max_norm` this writes to `weight`; no other call may use the layer at the same time.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> table = np.array([[1, 2], [3, 4]], np.float32)
        >>> layer = embag.EmbeddingBag.from_pretrained(table, mode="sum")
        >>> layer.forward([0, 1, 1], [0, 2])
        array([[4., 6.],
               [3., 4.]], dtype=float32)
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
            out=out,
            return_max_indices=return_max_indices,
            num_threads=num_threads,
            invalid=self.invalid,
            return_n_invalid=return_n_invalid,
            default_idx=self.default_idx,
            return_n_valid=return_n_valid,
            normalize=self.normalize,
        )

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Call `forward`, which subclasses may override."""
        return self.forward(*arguments, **options)

    def backward(
        self,
        grad_output: ArrayLike,
        input: Ids,
        offsets: ArrayLike | None = None,
        per_sample_weights: SampleWeights | None = None,
        *,
        max_indices: ArrayLike | None = None,
        wrt: Literal["weight", "per_sample_weights"] | None = None,
        num_threads: int | None = None,
    ) -> EmbeddingBagGrads:
        """Return the gradients of a `forward`, given the gradient of its output.

        The layer stores nothing in `forward`, so `backward` takes the same arguments again. The
        values of the table must not have changed in between if `per_sample_weights` are given, with
        `normalize`, or with ``mode="max"`` and no `max_indices`.

        Parameters
        ----------
        grad_output : array_like, shape (n_bags, embedding_dim)
            The gradient of the output.
        input, offsets, per_sample_weights
            As in `forward`.
        max_indices, wrt, num_threads
            As in `embedding_bag_backward`.

        Returns
        -------
        weight : ndarray or SparseRows, shape (num_embeddings, embedding_dim)
            The gradient of the table.
        per_sample_weights : ndarray or None
            The gradient of the weights; for a ragged input, a 1-D array of all entries.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embedding_bag_backward`.

        See Also
        --------
        embedding_bag_backward : Describes each argument.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> layer = embag.EmbeddingBag(3, 2, mode="sum")
        >>> layer.backward([[1, 2], [10, 20]], [0, 1, 1], [0, 2]).weight
        array([[ 1.,  2.],
               [11., 22.],
               [ 0.,  0.]], dtype=float32)
        """
        return embedding_bag_backward(
            grad_output,
            input,
            self.weight,
            offsets,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            sparse=self.sparse,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            max_indices=max_indices,
            wrt=wrt,
            num_threads=num_threads,
            invalid=self.invalid,
            default_idx=self.default_idx,
            normalize=self.normalize,
        )

    def update(
        self,
        grad_output: ArrayLike,
        input: Ids,
        offsets: ArrayLike | None = None,
        per_sample_weights: SampleWeights | None = None,
        *,
        optimizer: Optimizer,
        max_indices: ArrayLike | None = None,
        wrt: Literal["weight"] | None = "weight",
        num_threads: int | None = None,
    ) -> NDArray[Any] | None:
        """Compute the gradient of the table, and change the table by a step of an optimizer.

        Parameters
        ----------
        grad_output : array_like, shape (n_bags, embedding_dim)
            The gradient of the output.
        input, offsets, per_sample_weights
            As in `forward`.
        optimizer : Optimizer
            An optimizer of `embag.optim` that was made for `weight`.
        max_indices, num_threads
            As in `embedding_bag_backward`.
        wrt : {"weight", None}, optional
            None also returns the gradient of `per_sample_weights`, which is computed before the
            table changes.

        Returns
        -------
        ndarray or None
            With ``wrt=None``: the gradient of `per_sample_weights`.

        Raises
        ------
        TypeError
            If `optimizer` is not an Optimizer.
        ValueError
            If `optimizer` was made for another table than `weight`.
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embag.optim.Optimizer.update`. Nothing has changed then.

        See Also
        --------
        embag.optim.Optimizer.update : The method that this calls, with the options of the layer.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> layer = embag.EmbeddingBag.from_pretrained(np.ones((3, 2), np.float32), mode="sum")
        >>> optimizer = embag.optim.SGD(layer.weight, lr=0.5)
        >>> layer.update([[1, 2]], [[0, 2]], optimizer=optimizer)
        >>> layer.weight
        array([[0.5, 0. ],
               [1. , 1. ],
               [0.5, 0. ]], dtype=float32)
        """
        if not issubclass(type(optimizer), Optimizer):
            raise TypeError(
                f"optimizer must be an Optimizer of embag.optim, "
                f"got {_arguments.describe(optimizer)}"
            )
        if optimizer.table is not self.weight:
            raise ValueError(
                f"optimizer must be made for the layer's weight, got one of another table: "
                f"{optimizer!r}"
            )
        return optimizer.update(
            grad_output,
            input,
            offsets,
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=self.padding_idx,
            max_indices=max_indices,
            wrt=wrt,
            num_threads=num_threads,
            invalid=self.invalid,
            default_idx=self.default_idx,
            normalize=self.normalize,
        )

    def __repr__(self) -> str:
        parts = [f"{self.num_embeddings}, {self.embedding_dim}"]
        if self.max_norm is not None:
            parts.append(f"max_norm={self.max_norm!r}")
        if self.norm_type != 2:
            parts.append(f"norm_type={self.norm_type!r}")
        if self.scale_grad_by_freq:
            parts.append(f"scale_grad_by_freq={self.scale_grad_by_freq!r}")
        parts.append(f"mode={self.mode!r}")
        if self.padding_idx is not None:
            parts.append(f"padding_idx={self.padding_idx!r}")
        if self.default_idx is not None:
            parts.append(f"default_idx={self.default_idx!r}")
        if self.invalid != "raise":
            parts.append(f"invalid={self.invalid!r}")
        if self.normalize:
            parts.append(f"normalize={self.normalize!r}")
        return f"{type(self).__name__}({', '.join(parts)})"


def _as_size(value: Any, name: str) -> int:
    """Return a number of rows or columns as an int."""
    size = _arguments.as_integer(value, name)
    if size < 0:
        raise ValueError(f"{name} must be at least 0, got {_arguments.describe(size)}")
    return size


def _as_row(value: Any, name: str, n_rows: int) -> int | None:
    """Return the row that an argument names, counted from the start; None for None."""
    return None if value is None else _arguments.as_row(value, name, n_rows)


def _draw(shape: tuple[int, int], dtype: DTypeLike, rng: Any) -> NDArray[Any]:
    """Return a table of standard normal values."""
    entry: np.dtype[Any] | None = None
    if dtype is not None:  # refused: it is float64 to NumPy and float32 to torch
        try:
            entry = np.dtype(dtype)
        except MemoryError:
            raise
        except Exception:  # a user's object can make NumPy raise anything
            entry = None
    if entry is None or entry.char not in "fd" or not entry.isnative:
        seen = _arguments.describe(dtype) if entry is None else entry
        raise TypeError(f"dtype must be float32 or float64 in native byte order, got {seen}")
    try:
        generator = np.random.default_rng(rng)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"rng must be valid for numpy.random.default_rng, got {_arguments.describe(rng)}"
        ) from error
    weight = aligned_empty(shape, entry)
    generator.standard_normal(dtype="f4" if entry.char == "f" else "f8", out=weight)
    return weight

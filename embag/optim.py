"""Optimizers: they change the rows of a table that occur in a batch, and keep a state for each row.

The formulas are those of the named framework. Each has its kernel in
`_kernels/optimizers.pxi`; this file checks arguments and owns the states.

    optimizer = embag.optim.Adagrad(table, lr=0.05)
    optimizer.update(grad_output, ids, offsets, mode="sum")     # backward and step

Tested in tests/gradients/test_optimizers.py.
"""

import math
import threading
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag.backward import embedding_bag_backward
from embag.sparse_rows import SparseRows

__all__ = ["FTRL", "SGD", "Adagrad", "Adam", "Optimizer", "RowWiseAdagrad"]

AnyArray: TypeAlias = NDArray[Any]
Decay: TypeAlias = Literal["none", "l2", "decoupled"]


class Optimizer:
    """The base of the optimizers: a table, the states of its rows, and the steps.

    An optimizer holds its table by reference and changes it in place. Rows that do not occur in a
    gradient keep their bits, and so do their states; so do padding rows, skipped ids and frozen
    rows. A dense gradient means that every row occurs.

    Attributes
    ----------
    table : ndarray
        The table.
    lr : float
        The learning rate. It may be set between steps.
    n_steps : int
        The number of steps so far.
    states : dict of str to ndarray
        The states: arrays of the shape of the table, or ``(n_rows, 1)``.

    Raises
    ------
    TypeError
        If `table` is no array of float32 or float64, or an option has the wrong kind.
    ValueError
        If the table is not 2-D, is read-only, or the entries of a row are not adjacent; if an
        option is out of its range.
    IndexError
        If a frozen row is out of range.

    Notes
    -----
    Computed in the dtype of the table. The bits do not depend on the number of threads or on the
    instruction-set level. If `step` raises, nothing has changed, unless it is a RuntimeError for
    arrays that another thread changed. An interrupted `update` has changed nothing, or all rows.
    """

    _rule: str
    _state_names: tuple[str, ...] = ()
    _is_narrow = False  # a state has one number for each row

    def __init__(
        self,
        table: AnyArray,
        lr: float,
        frozen: "ArrayLike | None" = None,
    ) -> None:
        _check_table(table)
        self.table = table
        self.lr = lr
        self.n_steps = 0
        self._shape = table.shape
        self._dtype = table.dtype
        self._active = _as_active(frozen, table.shape[0])
        self._lock = threading.Lock()
        n_columns = 1 if self._is_narrow else table.shape[1]
        self.states: dict[str, AnyArray] = {
            name: _arguments.new_array(np.zeros, (table.shape[0], n_columns), table.dtype)
            for name in self._state_names
        }

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = _as_positive(lr, "lr")

    def _numbers(self) -> tuple[float, ...]:
        """Return the numbers of the rule, for the step that `n_steps` already counts."""
        return (self.lr,)

    def step(self, grad: "SparseRows | AnyArray", *, num_threads: int | None = None) -> None:
        """Change the table by a gradient.

        Parameters
        ----------
        grad : SparseRows or ndarray, shape (n_rows, dim)
            The gradient of the table, in its dtype. Only the rows of `SparseRows` are changed; of
            an array all rows.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.

        Raises
        ------
        TypeError
            If `grad` has another kind or dtype.
        ValueError
            If `grad` has another shape, or the table or a state has changed its shape, dtype or
            layout, is read-only, or shares memory with `grad`.
        RuntimeError
            If another call of this optimizer is running.
        """
        rows, values = self._as_rows(grad)
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("an optimizer must make one step at a time, got two calls at once")
        try:
            self._check_arrays(values)
            team = threads.team_for((2 + 2 * len(self.states)) * values.size, num_threads)
            self.n_steps += 1
            done = threads.run(
                kernels.step_rows,
                team,
                kernels.RULES[self._rule],
                self._numbers(),
                self.table,
                tuple(self.states.values()),
                rows,
                values,
            )
        finally:
            self._lock.release()
        if not done:
            _arguments.raise_for_change()

    def update(
        self,
        grad_output: "ArrayLike",
        input: "ArrayLike",
        offsets: "ArrayLike | None" = None,
        *,
        num_threads: int | None = None,
        wrt: Literal["weight", "per_sample_weights"] | None = "weight",
        **options: Any,
    ) -> AnyArray | None:
        """Compute the gradient of a lookup, and change the table by it.

        Parameters
        ----------
        grad_output : array_like, shape (n_bags, dim)
            The gradient of the output of the lookup.
        input, offsets
            The ids of the lookup: see `embedding_bag_backward`.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.
        wrt : {"weight", None}, optional
            None also returns the gradient of `per_sample_weights`, which is computed before the
            table changes.
        **options
            Any other argument of `embedding_bag_backward`: `mode`, `per_sample_weights`,
            `padding_idx`, `invalid`, and so on. Not `sparse`.

        Returns
        -------
        ndarray or None
            With ``wrt=None``: the gradient of `per_sample_weights`.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As `embedding_bag_backward` and `step`. Nothing has changed then.

        Notes
        -----
        The bits are those of ``step(embedding_bag_backward(..., sparse=True).weight)``.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> table = np.ones((3, 2), np.float32)
        >>> optimizer = embag.optim.SGD(table, lr=0.5)
        >>> optimizer.update([[1, 2]], [[0, 2]], mode="sum")
        >>> table
        array([[0.5, 0. ],
               [1. , 1. ],
               [0.5, 0. ]], dtype=float32)
        """
        if "sparse" in options:
            raise TypeError("sparse must be left out: the gradient of an update is sparse")
        if wrt not in ("weight", None):
            raise ValueError(f"wrt must be 'weight' or None, got {_arguments.describe(wrt)}")
        grads = embedding_bag_backward(
            grad_output,
            input,
            self.table,
            offsets,
            sparse=True,
            wrt=wrt,
            num_threads=num_threads,
            **options,
        )
        self.step(grads.weight, num_threads=num_threads)
        of_weights: AnyArray | None = grads.per_sample_weights
        return of_weights

    def _as_rows(self, grad: Any) -> tuple[NDArray[np.int64] | None, AnyArray]:
        """Return the rows that a gradient changes, None for all, and their gradients."""
        rows = None
        if type(grad) is SparseRows:
            rows, values = grad.indices, grad.values
            if grad.shape != self._shape:
                raise ValueError(f"grad must have shape {self._shape}, got {grad.shape}")
        else:
            _arguments.check_array(grad, "grad", "a numpy.ndarray or SparseRows")
            values = np.ndarray.view(grad, np.ndarray)
            if values.shape != self._shape:
                raise ValueError(f"grad must have shape {self._shape}, got {values.shape}")
        if values.dtype != self._dtype:
            raise TypeError(f"grad must be {self._dtype}, like the table, got {values.dtype}")
        if self._active is not None:
            kept = np.flatnonzero(self._active if rows is None else self._active[rows])
            rows, values = kept if rows is None else rows[kept], values[kept]
        if not kernels.is_table(values):
            values = np.ascontiguousarray(values)
        return rows, values

    def _check_arrays(self, values: AnyArray) -> None:
        """Raise unless the table and the states are as they were, and apart from the gradient."""
        for name, array in (("table", self.table), *self.states.items()):
            is_narrow = self._is_narrow and name != "table"
            expected = (self._shape[0], 1) if is_narrow else self._shape
            if array.dtype != self._dtype or array.shape != expected:
                raise ValueError(
                    f"{name} must be {self._dtype} of shape {expected}, as it was, "
                    f"got {array.dtype} of shape {array.shape}"
                )
            _check_layout(array, name)
            if _arguments.shares_memory(array, values):
                raise ValueError(f"grad must share no memory with {name}, got an overlap")

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and copies of the states, by name.

        Returns
        -------
        dict
            "step", an int, and an array for each state. The names are those of torch's optimizer.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> optimizer = embag.optim.Adagrad(np.ones((2, 1)), lr=0.1)
        >>> optimizer.step(np.array([[2.0], [0.0]]))
        >>> optimizer.state_dict()
        {'step': 1, 'sum': array([[4.],
               [0.]])}
        """
        return {"step": self.n_steps, **{name: a.copy() for name, a in self.states.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, as `state_dict` returns it, or as torch's optimizer has it.

        Parameters
        ----------
        state : mapping
            "step", a number, and an array for each state, of its shape. It is copied. torch's
            tensors are arrays; its state of a parameter is ``optimizer.state[parameter]``.

        Raises
        ------
        TypeError, ValueError
            If a state is missing, unknown, or has another dtype or shape. Nothing has changed then.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {_arguments.describe(state)}")
        names = {"step", *self.states}
        if set(state) != names:
            raise ValueError(
                f"state must have {', '.join(sorted(names))}, got {', '.join(map(str, state))}"
            )
        n_steps = float(state["step"])
        if not (n_steps >= 0 and n_steps == int(n_steps)):
            raise ValueError(f"step must be a count, got {n_steps}")
        new = {}
        for name, old in self.states.items():
            array = np.asarray(state[name])
            if array.dtype != old.dtype:
                raise TypeError(f"{name} must be {old.dtype}, got {array.dtype}")
            if array.shape != old.shape and array.shape != old.shape[: old.shape[1] == 1]:
                raise ValueError(f"{name} must have shape {old.shape}, got {array.shape}")
            new[name] = array.reshape(old.shape)
        for name, array in new.items():
            self.states[name][...] = array
        self.n_steps = int(n_steps)

    def __repr__(self) -> str:
        n_rows, dim = self._shape
        return (
            f"{type(self).__name__}(table of {n_rows} rows, dim={dim}, {self._dtype}, "
            f"lr={self.lr:g}, {self.n_steps} steps)"
        )


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum for rows that occur.

    ``w -= lr * g``; with momentum ``b = momentum * b + g`` and ``w -= lr * b``. The buffer b of a
    row that does not occur rests, so momentum is lazy, unlike torch's for a dense gradient.

    Parameters
    ----------
    table : ndarray of float32 or float64, shape (n_rows, dim)
        The table, writeable, with adjacent columns.
    lr : float
        The learning rate, at least 0.
    momentum : float, optional
        At least 0 and less than 1.
    frozen : array_like, optional
        Rows that never change: ids, or a bool for each row.

    References
    ----------
    ``torch.optim.SGD``.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.zeros((2, 1), np.float32)
    >>> optimizer = embag.optim.SGD(table, lr=1, momentum=0.5)
    >>> for _ in range(2):
    ...     optimizer.step(embag.SparseRows([1], np.ones((1, 1), np.float32), (2, 1)))
    >>> table
    array([[ 0. ],
           [-2.5]], dtype=float32)
    """

    def __init__(
        self,
        table: AnyArray,
        lr: float,
        momentum: float = 0.0,
        *,
        frozen: "ArrayLike | None" = None,
    ) -> None:
        self.momentum = _as_share(momentum, "momentum")
        if self.momentum:
            self._rule, self._state_names = "momentum", ("momentum_buffer",)
        super().__init__(table, lr, frozen)

    _rule = "sgd"

    def _numbers(self) -> tuple[float, ...]:
        return self.lr, self.momentum


class Adagrad(Optimizer):
    """Adagrad: ``s += g ** 2`` and ``w -= lr_t * g / (sqrt(s) + eps)``.

    Parameters
    ----------
    table : ndarray of float32 or float64, shape (n_rows, dim)
        The table, writeable, with adjacent columns.
    lr : float, optional
        The learning rate, at least 0.
    lr_decay : float, optional
        Step t has ``lr_t = lr / (1 + (t - 1) * lr_decay)``.
    eps : float, optional
        A small number, at least 0.
    initial_accumulator_value : float, optional
        What every s begins with.
    frozen : array_like, optional
        Rows that never change: ids, or a bool for each row.

    References
    ----------
    ``torch.optim.Adagrad`` for sparse gradients; its defaults.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.zeros((2, 2))
    >>> embag.optim.Adagrad(table, lr=0.1).update([[2.0, 4.0]], [[1]], mode="sum")
    >>> table.round(4)
    array([[ 0. ,  0. ],
           [-0.1, -0.1]])
    """

    _rule = "adagrad"
    _state_names = ("sum",)

    def __init__(
        self,
        table: AnyArray,
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        frozen: "ArrayLike | None" = None,
    ) -> None:
        self.lr_decay = _as_positive(lr_decay, "lr_decay")
        self.eps = _as_positive(eps, "eps")
        start = _as_positive(initial_accumulator_value, "initial_accumulator_value")
        super().__init__(table, lr, frozen)
        self.states["sum"][...] = start

    def _numbers(self) -> tuple[float, ...]:
        return self.lr / (1 + (self.n_steps - 1) * self.lr_decay), self.eps


class RowWiseAdagrad(Optimizer):
    """Adagrad with one state for each row: ``s += mean(g ** 2)``.

    With ``a = lr / (sqrt(s) + eps)``, ``w = c * w - a * g``, where c is 1 without weight decay.
    With "l2", g is ``g + weight_decay * w`` in the mean, and ``c = 1 - a * weight_decay``. With
    "decoupled", ``c = 1 - lr * weight_decay``.

    Parameters
    ----------
    table : ndarray of float32 or float64, shape (n_rows, dim)
        The table, writeable, with adjacent columns.
    lr : float, optional
        The learning rate, at least 0.
    eps : float, optional
        A small number, at least 0.
    weight_decay : float, optional
        At least 0.
    weight_decay_mode : {"none", "l2", "decoupled"}, optional
        How `weight_decay` is used.
    frozen : array_like, optional
        Rows that never change: ids, or a bool for each row.

    References
    ----------
    FBGEMM's ``EXACT_ROWWISE_ADAGRAD``. The mean is summed in float64.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.zeros((2, 2))
    >>> optimizer = embag.optim.RowWiseAdagrad(table, lr=0.1)
    >>> optimizer.update([[3.0, 4.0]], [[1]], mode="sum")
    >>> optimizer.states["sum"].ravel()
    array([ 0. , 12.5])
    """

    _rule = "row_wise_adagrad"
    _state_names = ("sum",)
    _is_narrow = True

    def __init__(
        self,
        table: AnyArray,
        lr: float = 1e-2,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        weight_decay_mode: Decay = "none",
        frozen: "ArrayLike | None" = None,
    ) -> None:
        self.eps = _as_positive(eps, "eps")
        self.weight_decay = _as_positive(weight_decay, "weight_decay")
        if type(weight_decay_mode) is not str or weight_decay_mode not in kernels.DECAYS:
            raise ValueError(
                "weight_decay_mode must be 'none', 'l2' or 'decoupled', "
                f"got {_arguments.describe(weight_decay_mode)}"
            )
        self.weight_decay_mode: Decay = weight_decay_mode
        super().__init__(table, lr, frozen)

    def _numbers(self) -> tuple[float, ...]:
        decay = float(kernels.DECAYS[self.weight_decay_mode])
        return self.lr, self.eps, self.weight_decay, decay


class Adam(Optimizer):
    """Adam for rows that occur: lazy, as ``torch.optim.SparseAdam``.

    ``m += (1 - beta1) * (g - m)``, ``v += (1 - beta2) * (g ** 2 - v)``, and
    ``w -= lr * sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * m / (sqrt(v) + eps)``, where t counts
    all steps.

    Parameters
    ----------
    table : ndarray of float32 or float64, shape (n_rows, dim)
        The table, writeable, with adjacent columns.
    lr : float, optional
        The learning rate, at least 0.
    betas : (float, float), optional
        Each at least 0 and less than 1.
    eps : float, optional
        A small number, at least 0.
    frozen : array_like, optional
        Rows that never change: ids, or a bool for each row.

    References
    ----------
    ``torch.optim.SparseAdam``; its defaults.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.zeros((2, 2))
    >>> embag.optim.Adam(table, lr=0.1).update([[2.0, -4.0]], [[1]], mode="sum")
    >>> table.round(4)
    array([[ 0. ,  0. ],
           [-0.1,  0.1]])
    """

    _rule = "adam"
    _state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        table: AnyArray,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        frozen: "ArrayLike | None" = None,
    ) -> None:
        try:
            first, second = betas
        except (TypeError, ValueError):
            raise TypeError(
                f"betas must be two numbers, got {_arguments.describe(betas)}"
            ) from None
        self.betas = _as_share(first, "betas[0]"), _as_share(second, "betas[1]")
        self.eps = _as_positive(eps, "eps")
        super().__init__(table, lr, frozen)

    def _numbers(self) -> tuple[float, ...]:
        first, second = self.betas
        size = self.lr * math.sqrt(1 - second**self.n_steps) / (1 - first**self.n_steps)
        return size, first, second, self.eps


class FTRL(Optimizer):
    """Follow the regularized leader, as Keras computes it.

    ``n' = n + g ** 2``, ``z += g - (sqrt(n') - sqrt(n)) / lr * w``, and w is
    ``(clip(z, -l1, l1) - z) / ((beta + sqrt(n')) / lr + 2 * l2)``.

    Parameters
    ----------
    table : ndarray of float32 or float64, shape (n_rows, dim)
        The table, writeable, with adjacent columns.
    lr : float, optional
        The learning rate, greater than 0.
    l1, l2, beta : float, optional
        At least 0.
    initial_accumulator_value : float, optional
        What every n begins with.
    frozen : array_like, optional
        Rows that never change: ids, or a bool for each row.

    References
    ----------
    ``keras.optimizers.Ftrl``: its code, which multiplies l2 by 2, and its defaults.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> table = np.zeros((2, 2))
    >>> embag.optim.FTRL(table, lr=0.1, l1=1.0).update([[2.0, 0.5]], [[1]], mode="sum")
    >>> table.round(4)  # l1 keeps small entries at 0
    array([[ 0.    ,  0.    ],
           [-0.0494,  0.    ]])
    """

    _rule = "ftrl"
    _state_names = ("linear", "accumulator")

    def __init__(
        self,
        table: AnyArray,
        lr: float = 1e-3,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 0.0,
        initial_accumulator_value: float = 0.1,
        frozen: "ArrayLike | None" = None,
    ) -> None:
        self.l1, self.l2 = _as_positive(l1, "l1"), _as_positive(l2, "l2")
        self.beta = _as_positive(beta, "beta")
        start = _as_positive(initial_accumulator_value, "initial_accumulator_value")
        if _as_positive(lr, "lr") == 0:
            raise ValueError("lr must be greater than 0, got 0")
        super().__init__(table, lr, frozen)
        self.states["accumulator"][...] = start

    def _numbers(self) -> tuple[float, ...]:
        return self.lr, self.l1, self.l2, self.beta


def _check_table(table: Any) -> None:
    _arguments.check_table(table, "table")
    _check_layout(table, "table")


def _check_layout(array: AnyArray, name: str) -> None:
    if not kernels.is_table(array):
        raise ValueError(
            f"{name} must be aligned, with the entries of each row adjacent, "
            f"got strides {array.strides}"
        )
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")


def _as_active(frozen: Any, n_rows: int) -> NDArray[np.bool_] | None:
    """Return which rows change, None for all."""
    if frozen is None:
        return None
    mask = np.asarray(frozen)
    if mask.dtype == np.bool_:
        if mask.shape != (n_rows,):
            raise ValueError(f"frozen must have shape ({n_rows},), got {mask.shape}")
        return ~mask
    rows = _arguments.as_indices(frozen, "frozen")
    k = kernels.first_bad_index(rows, n_rows)
    if k >= 0:
        _arguments.raise_out_of_range(f"frozen[{k}]", int(rows.reshape(-1)[k]), n_rows)
    active = np.ones(n_rows, np.bool_)
    active[rows] = False
    return active


def _as_positive(value: Any, name: str) -> float:
    """Return a finite number of at least 0."""
    number = _arguments.as_number(value, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be at least 0 and finite, got {number}")
    return number


def _as_share(value: Any, name: str) -> float:
    number = _arguments.as_number(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {number}")
    return number

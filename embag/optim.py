"""Optimizers: they change the rows of a table that occur in a batch, and keep a state for each row.

The formulas are those of the named framework. Each has its kernel in `_kernels/optimizers.pxi`;
this file checks the options. `_optimizer.py` has what all of them do.

    optimizer = embag.optim.Adagrad(table, lr=0.05)
    optimizer.update(grad_output, ids, offsets, mode="sum")     # backward and step

Tested in tests/gradients/test_optimizers.py.
"""

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from embag import _arguments
from embag._optimizer import AnyArray, NotNegative, Optimizer, as_not_negative
from embag.remapped import RemappedTable

__all__ = ["FTRL", "SGD", "Adagrad", "Adam", "Optimizer", "RowWiseAdagrad"]

Decay: TypeAlias = Literal["none", "l2", "decoupled"]
_ROW_WISE_RULES = {
    "none": "row_wise_adagrad",
    "l2": "row_wise_adagrad_l2",
    "decoupled": "row_wise_adagrad_decoupled",
}


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum for rows that occur.

    ``w -= lr * g``; with momentum ``b = momentum * b + g`` and ``w -= lr * b``. The buffer b of a
    row that does not occur rests, so momentum is lazy, unlike torch's for a dense gradient.

    Parameters
    ----------
    table : ndarray of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table, writeable, with adjacent columns; or a RemappedTable of one.
    lr : float
        The learning rate, at least 0.
    momentum : float, optional
        At least 0 and less than 1.
    frozen : array_like, optional
        Rows of the array that never change: their numbers, or a bool for each row.
    stochastic_rounding : bool, optional
        For a float16 or bfloat16 table: if True, round each entry to either neighbour by chance.
    seed : int, optional
        The seed of stochastic rounding, less than 2**64.

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
        table: "AnyArray | RemappedTable",
        lr: float,
        momentum: float = 0.0,
        *,
        frozen: "ArrayLike | None" = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self._momentum = _as_share(momentum, "momentum")
        self._rule = "momentum" if self._momentum else "sgd"
        self._state_names = ("momentum_buffer",) if self._momentum else ()
        super().__init__(table, lr, frozen, stochastic_rounding, seed)

    _counts = False

    @property
    def momentum(self) -> float:
        """The momentum; it cannot change, since the states depend on it."""
        return self._momentum

    def _numbers(self, t: int) -> tuple[float, ...]:
        return self.lr, self.momentum


class Adagrad(Optimizer):
    """Adagrad: ``s += g ** 2`` and ``w -= lr_t * (g / (sqrt(s) + eps))``.

    Parameters
    ----------
    table : ndarray of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table, writeable, with adjacent columns; or a RemappedTable of one.
    lr : float, optional
        The learning rate, at least 0.
    lr_decay : float, optional
        Step t has ``lr_t = lr / (1 + (t - 1) * lr_decay)``.
    eps : float, optional
        A small number, at least 0.
    initial_accumulator_value : float, optional
        What every s begins with.
    frozen : array_like, optional
        Rows of the array that never change: their numbers, or a bool for each row.
    stochastic_rounding : bool, optional
        For a float16 or bfloat16 table: if True, round each entry to either neighbour by chance.
    seed : int, optional
        The seed of stochastic rounding, less than 2**64.

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

    lr_decay, eps, initial_accumulator_value = NotNegative(), NotNegative(), NotNegative()

    def __init__(
        self,
        table: "AnyArray | RemappedTable",
        lr: float = 1e-2,
        *,
        lr_decay: float = 0.0,
        eps: float = 1e-10,
        initial_accumulator_value: float = 0.0,
        frozen: "ArrayLike | None" = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self.lr_decay = lr_decay
        self.eps = eps
        self.initial_accumulator_value = initial_accumulator_value
        super().__init__(table, lr, frozen, stochastic_rounding, seed)

    def _initial_value(self, state: str) -> float:
        return self.initial_accumulator_value

    def _numbers(self, t: int) -> tuple[float, ...]:
        return self.lr / (1 + (t - 1) * self.lr_decay), self.eps


class RowWiseAdagrad(Optimizer):
    """Adagrad with one state for each row: ``s += mean(g ** 2)``.

    With ``a = lr / (sqrt(s) + eps)``, ``w = c * w - a * g``, where c is 1 without weight decay.
    With "l2", g is ``g + weight_decay * w`` in the mean, and ``c = 1 - a * weight_decay``. With
    "decoupled", ``c = 1 - lr * weight_decay``.

    Parameters
    ----------
    table : ndarray of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table, writeable, with adjacent columns; or a RemappedTable of one.
    lr : float, optional
        The learning rate, at least 0.
    eps : float, optional
        A small number, at least 0.
    weight_decay : float, optional
        At least 0.
    weight_decay_mode : {"none", "l2", "decoupled"}, optional
        How `weight_decay` is used.
    frozen : array_like, optional
        Rows of the array that never change: their numbers, or a bool for each row.
    stochastic_rounding : bool, optional
        For a float16 or bfloat16 table: if True, round each entry to either neighbour by chance.
    seed : int, optional
        The seed of stochastic rounding, less than 2**64.

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

    _state_names = ("sum",)
    _is_narrow = True

    eps, weight_decay = NotNegative(), NotNegative()

    def __init__(
        self,
        table: "AnyArray | RemappedTable",
        lr: float = 1e-2,
        *,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        weight_decay_mode: Decay = "none",
        frozen: "ArrayLike | None" = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self.eps = eps
        self.weight_decay = weight_decay
        if type(weight_decay_mode) is not str or weight_decay_mode not in _ROW_WISE_RULES:
            raise ValueError(
                "weight_decay_mode must be 'none', 'l2' or 'decoupled', "
                f"got {_arguments.describe(weight_decay_mode)}"
            )
        self.weight_decay_mode: Decay = weight_decay_mode
        super().__init__(table, lr, frozen, stochastic_rounding, seed)

    @property
    def _rule(self) -> str:  # type: ignore[override]
        # Without decay it is the simplest, whatever the mode.
        return _ROW_WISE_RULES[self.weight_decay_mode if self.weight_decay else "none"]

    def _numbers(self, t: int) -> tuple[float, ...]:
        return self.lr, self.eps, self.weight_decay


class Adam(Optimizer):
    """Adam for rows that occur: lazy, as ``torch.optim.SparseAdam``.

    ``m += (1 - beta1) * (g - m)``, ``v += (1 - beta2) * (g ** 2 - v)``, and
    ``w -= (lr * sqrt(1 - beta2 ** t) / (1 - beta1 ** t)) * (m / (sqrt(v) + eps))``, where t
    counts all steps.

    Parameters
    ----------
    table : ndarray of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table, writeable, with adjacent columns; or a RemappedTable of one.
    lr : float, optional
        The learning rate, at least 0.
    betas : (float, float), optional
        Each at least 0 and less than 1.
    eps : float, optional
        A small number, at least 0.
    frozen : array_like, optional
        Rows of the array that never change: their numbers, or a bool for each row.
    stochastic_rounding : bool, optional
        For a float16 or bfloat16 table: if True, round each entry to either neighbour by chance.
    seed : int, optional
        The seed of stochastic rounding, less than 2**64.

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

    eps = NotNegative()

    def __init__(
        self,
        table: "AnyArray | RemappedTable",
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        *,
        frozen: "ArrayLike | None" = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self.betas = betas
        self.eps = eps
        super().__init__(table, lr, frozen, stochastic_rounding, seed)

    @property
    def betas(self) -> tuple[float, float]:
        """The shares of the averages that are kept."""
        return self._betas

    @betas.setter
    def betas(self, betas: tuple[float, float]) -> None:
        try:
            first, second = betas
        except (TypeError, ValueError):
            raise TypeError(
                f"betas must be two numbers, got {_arguments.describe(betas)}"
            ) from None
        self._betas = _as_share(first, "betas[0]"), _as_share(second, "betas[1]")

    def _numbers(self, t: int) -> tuple[float, ...]:
        first, second = self.betas
        size = self.lr * math.sqrt(1 - second**t) / (1 - first**t)
        return size, 1 - first, 1 - second, self.eps


class FTRL(Optimizer):
    """Follow the regularized leader, as Keras computes it.

    ``n' = n + g ** 2``, ``z += g - (sqrt(n') - sqrt(n)) / lr * w``, and w is
    ``(clip(z, -l1, l1) - z) / ((beta + sqrt(n')) / lr + 2 * l2)``.

    Parameters
    ----------
    table : ndarray of float32, float64, float16 or bfloat16, shape (n_rows, dim)
        The table, writeable, with adjacent columns; or a RemappedTable of one.
    lr : float, optional
        The learning rate, greater than 0 in float32.
    l1, l2, beta : float, optional
        At least 0.
    initial_accumulator_value : float, optional
        What every n begins with.
    frozen : array_like, optional
        Rows of the array that never change: their numbers, or a bool for each row.
    stochastic_rounding : bool, optional
        For a float16 or bfloat16 table: if True, round each entry to either neighbour by chance.
    seed : int, optional
        The seed of stochastic rounding, less than 2**64.

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

    def _as_lr(self, lr: float) -> float:
        if np.float32(as_not_negative(lr, "lr")) == 0:
            raise ValueError(f"lr must be greater than 0 in float32, got {lr}")
        return super()._as_lr(lr)

    _rule = "ftrl"
    _state_names = ("linear", "accumulator")

    l1, l2, beta = NotNegative(), NotNegative(), NotNegative()
    initial_accumulator_value = NotNegative()

    def __init__(
        self,
        table: "AnyArray | RemappedTable",
        lr: float = 1e-3,
        *,
        l1: float = 0.0,
        l2: float = 0.0,
        beta: float = 0.0,
        initial_accumulator_value: float = 0.1,
        frozen: "ArrayLike | None" = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        self.l1, self.l2, self.beta = l1, l2, beta
        self.initial_accumulator_value = initial_accumulator_value
        super().__init__(table, lr, frozen, stochastic_rounding, seed)

    def _initial_value(self, state: str) -> float:
        return self.initial_accumulator_value if state == "accumulator" else 0.0

    def _numbers(self, t: int) -> tuple[float, ...]:
        return self.lr, self.l1, 2 * self.l2, self.beta


def _as_share(value: Any, name: str) -> float:
    number = _arguments.as_number(value, name)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and less than 1, got {number}")
    return number

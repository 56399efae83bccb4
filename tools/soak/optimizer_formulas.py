"""Optimizers with options that all matter, and their formulas in NumPy.

A formula takes the number of the step, the gradient, the rows and their states. It returns the
new rows and states. Each operation is rounded to the dtype of its arguments, as the optimizers
do, so the bits are equal. The learning rate is 0.25.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from embag import optim


class Rule(NamedTuple):
    """An optimizer of a table, and its formula."""

    make: Callable[..., optim.Optimizer]
    formula: Callable[..., tuple[np.ndarray, ...]]


def sgd(t: int, g: Any, w: Any) -> tuple[Any, ...]:
    return (w - 0.25 * g,)


def momentum(t: int, g: Any, w: Any, b: Any) -> tuple[Any, ...]:
    b = 0.75 * b + g
    return w - 0.25 * b, b


def adagrad(t: int, g: Any, w: Any, s: Any) -> tuple[Any, ...]:
    s = s + g * g
    return w - 0.25 / (1 + (t - 1) * 0.5) * (g / (np.sqrt(s) + 1e-3)), s


def row_wise(t: int, g: Any, w: Any, s: Any) -> tuple[Any, ...]:
    s = s + mean_squares(g).astype(s.dtype)
    return w - 0.25 / (np.sqrt(s) + 1e-3) * g, s


def row_wise_l2(t: int, g: Any, w: Any, s: Any) -> tuple[Any, ...]:
    s = s + mean_squares(g + 0.125 * w).astype(s.dtype)
    size = 0.25 / (np.sqrt(s) + 1e-3)
    return (1 - size * 0.125) * w - size * g, s


def row_wise_decoupled(t: int, g: Any, w: Any, s: Any) -> tuple[Any, ...]:
    s = s + mean_squares(g).astype(s.dtype)
    return (1 - 0.25 * 0.125) * w - 0.25 / (np.sqrt(s) + 1e-3) * g, s


def mean_squares(g: np.ndarray) -> np.ndarray:
    """Return the mean of the squares of rows of 32 entries, folded in halves, in float64."""
    squares = np.square(g, dtype=np.float64)
    while squares.shape[1] > 1:
        half = squares.shape[1] // 2
        squares = squares[:, :half] + squares[:, half:]
    return squares / g.shape[1]


def adam(t: int, g: Any, w: Any, m: Any, v: Any) -> tuple[Any, ...]:
    m = m + 0.25 * (g - m)
    v = v + 0.125 * (g * g - v)
    size = 0.25 * float(np.sqrt(1 - 0.875**t)) / (1 - 0.75**t)
    return w - size * (m / (np.sqrt(v) + 1e-3)), m, v


def ftrl(t: int, g: Any, w: Any, z: Any, n: Any) -> tuple[Any, ...]:
    root = np.sqrt(n)
    n = n + g * g
    new_root = np.sqrt(n)
    z = z + (g - (new_root - root) / 0.25 * w)
    return (np.clip(z, -0.125, 0.125) - z) / ((0.5 + new_root) / 0.25 + 1), z, n


def make_row_wise(decay: Any) -> Callable[..., optim.Optimizer]:
    def make(table: Any, **options: Any) -> optim.Optimizer:
        return optim.RowWiseAdagrad(
            table, 0.25, eps=1e-3, weight_decay=0.125, weight_decay_mode=decay, **options
        )

    return make


def make_adam(table: Any, **options: Any) -> optim.Optimizer:
    return optim.Adam(table, 0.25, (0.75, 0.875), 1e-3, **options)


RULES = {
    "SGD": Rule(lambda table, **options: optim.SGD(table, 0.25, **options), sgd),
    "momentum": Rule(lambda table, **options: optim.SGD(table, 0.25, 0.75, **options), momentum),
    "Adagrad": Rule(
        lambda table, **options: optim.Adagrad(table, 0.25, lr_decay=0.5, eps=1e-3, **options),
        adagrad,
    ),
    "row-wise Adagrad": Rule(make_row_wise("none"), row_wise),
    "row-wise Adagrad, l2": Rule(make_row_wise("l2"), row_wise_l2),
    "row-wise Adagrad, decoupled": Rule(make_row_wise("decoupled"), row_wise_decoupled),
    "Adam": Rule(make_adam, adam),
    "FTRL": Rule(
        lambda table, **options: optim.FTRL(table, 0.25, l1=0.125, l2=0.5, beta=0.5, **options),
        ftrl,
    ),
}

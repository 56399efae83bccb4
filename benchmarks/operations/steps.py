"""Training steps in float64: what a table must hold after the steps of some batches.

A step is the gradient of a sum, and an optimizer's change of the rows that occur.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.operations.workloads import Batch, Workload, reference_gradient, split_batch

# Of every contender. A power of two is the same number in float32.
LEARNING_RATE, OPTIMIZER_EPS, BETAS = 2.0**-6, 1e-8, (0.9, 0.999)

_EPS = 2.0**-23  # of float32
_ROUNDINGS = 16  # of a rule, at most


def assert_steps(
    workload: Workload,
    before: Sequence[NDArray[np.float32]],
    after: Sequence[NDArray[np.float32]],
    batches: Sequence[Batch],
    grad_output: NDArray[Any],
) -> None:
    """Compare tables with a step for each batch in float64; `before` is written to."""
    gradients = np.split(grad_output, workload.n_tables, axis=1)
    parts = zip(*(split_batch(workload, batch) for batch in batches), strict=True)
    for old, new, of_table, gradient in zip(before, after, parts, gradients, strict=True):
        _assert_table(workload, old, new, of_table, gradient)


def _assert_table(
    workload: Workload,
    before: NDArray[np.float32],
    after: NDArray[np.float32],
    batches: Sequence[Batch],
    grad_output: NDArray[Any],
) -> None:
    """Compare one table.

    The gradients of the output are positive, so each step lowers each entry: errors of single
    steps do not grow when steps are added. A sum of n terms has a relative error of n times eps.
    Adagrad and Adam divide it by a root, which has as much again. In float32, 1 - beta2 has an
    error of half an eps, which the root halves. The table itself is rounded in each step.
    """
    rows = np.unique(np.concatenate([batch.indices for batch in batches]))
    start = before[rows].astype(np.float64)
    expected, n_terms = start.copy(), 0
    states = np.zeros_like(expected), np.zeros_like(expected)
    for t, batch in enumerate(batches, start=1):
        occurring, gradient, most = reference_gradient(workload, before, batch, grad_output)
        expected_step(
            workload.optimizer, expected, states, np.searchsorted(rows, occurring), gradient, t
        )
        n_terms = max(n_terms, most)
    relative = 2 * (n_terms + workload.dim + _ROUNDINGS) * _EPS
    if workload.optimizer == "adam":
        relative += _EPS / 4 / (1 - BETAS[1])
    allowed = relative * (start - expected) + len(batches) * _EPS * np.abs([start, expected]).max(0)
    message = f"{workload.name}: the result must be right before it is timed"
    assert (np.abs(after[rows] - expected) <= allowed).all(), message
    before[rows] = after[rows]
    assert np.array_equal(before, after), f"{workload.name}: rows that do not occur must rest"


def expected_step(
    optimizer: str | None,
    table: NDArray[np.float64],
    states: tuple[NDArray[np.float64], NDArray[np.float64]],
    rows: NDArray[np.int64],
    gradient: NDArray[np.float64],
    t: int,
) -> None:
    """Make step t of an optimizer, in place."""
    first, second = states
    if optimizer == "sgd":
        table[rows] -= LEARNING_RATE * gradient
    elif optimizer == "adagrad":
        first[rows] += gradient**2
        table[rows] -= LEARNING_RATE * gradient / (np.sqrt(first[rows]) + OPTIMIZER_EPS)
    elif optimizer == "row-wise-adagrad":
        first[rows] += (gradient**2).mean(axis=1, keepdims=True)
        table[rows] -= LEARNING_RATE * gradient / (np.sqrt(first[rows]) + OPTIMIZER_EPS)
    elif optimizer == "adam":
        beta1, beta2 = BETAS
        first[rows] += (1 - beta1) * (gradient - first[rows])
        second[rows] += (1 - beta2) * (gradient**2 - second[rows])
        size = LEARNING_RATE * np.sqrt(1 - beta2**t) / (1 - beta1**t)
        table[rows] -= size * first[rows] / (np.sqrt(second[rows]) + OPTIMIZER_EPS)
    else:
        raise ValueError(f"unknown optimizer: {optimizer}")

"""Calls on tables that do not change: bags, gradients, and arguments that must raise."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

import embag
from tools.soak.contents import DIM, MODES, N_ROWS, Request, make_table
from tools.soak.harness import Timer, WrongResultError, check_equal


def one_table(number: int, n_bags: int, most_ids: int) -> Callable[..., None]:
    """Return work on a table that is not swapped: all three modes in turn."""
    table = make_table(number, 0)
    cases = []
    for i, mode in enumerate(MODES):
        # The mode of the i-th feature of a request is the i-th mode.
        request = Request(number, [number] * (i + 1), n_bags, most_ids)
        ids, offsets = request.named[f"feature_{i}"]
        expected = request.expected([0] * (i + 1))[:, i * DIM :]
        cases.append((mode, ids, offsets, expected, request.n_invalid[i]))
    turn = itertools.cycle(cases)

    def work(timer: Timer, num_threads: int | None = None) -> None:
        mode, ids, offsets, expected, n_expected = next(turn)
        with timer:
            result, n_invalid = embag.embedding_bag(
                *(ids, table, offsets),
                mode=mode,
                num_threads=num_threads,
                invalid="skip",
                return_n_invalid=True,
            )
        check_equal(timer, result, expected, f"{mode} of table {number}")
        if n_invalid != n_expected:
            raise WrongResultError(f"{n_invalid} ids out of range, not {n_expected}")

    return work


def gradients(seed: int) -> Callable[[Timer], None]:
    """Return work on gradients of a sum: sparse with a step, and dense, in turn."""
    rng = np.random.default_rng(seed)
    table = make_table(0, 0)
    ids = rng.integers(0, N_ROWS, 4000)
    offsets = np.arange(0, 4000, 20)
    grad_output = rng.integers(-9, 9, (200, DIM)).astype(np.float32)
    expected = np.zeros_like(table)
    np.add.at(expected, ids, np.repeat(grad_output, 20, axis=0))
    sparse = itertools.cycle([True, False])

    def work(timer: Timer) -> None:
        is_sparse = next(sparse)
        result = np.zeros_like(table)
        with timer:
            grad = embag.embedding_bag_backward(
                grad_output, ids, table, offsets, mode="sum", sparse=is_sparse
            ).weight
            if is_sparse:
                grad.add_to(result)
        what = "sparse" if is_sparse else "dense"
        check_equal(timer, result if is_sparse else grad, expected, what)

    return work


def bad_arguments() -> Callable[[Timer], None]:
    """Return work on calls that must raise, in turn."""
    table = make_table(0, 0)
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("f", "t")])
    many = np.arange(50_000) % N_ROWS  # enough for several threads
    many[40_000] = N_ROWS
    bags = np.arange(0, 50_000, 50)
    bag = partial(embag.embedding_bag, mode="sum")
    cases: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: bag([1, -1], table, [0]), IndexError, "input[1] = -1 is out of range"),
        (lambda: bag(many, table, bags), IndexError, "input[40000] = 2000 is out of range"),
        (lambda: bag([1, 2], table, [0, 3]), ValueError, "offsets must not exceed"),
        (lambda: bag([1, 2], table, []), ValueError, "offsets"),
        (lambda: ebc({"f": [[2**40]]}), IndexError, "feature 'f': ids[0, 0] = 1099511627776"),
        (lambda: ebc(many, np.append(bags, 50_000)), IndexError, "values[40000] = 2000 is out"),
        (lambda: ebc([1, 2], [0, 2, 1]), ValueError, "offsets"),
        (lambda: ebc.replace("t", table[:, 1:]), ValueError, "table must have 32 columns"),
    ]
    turn = itertools.cycle(cases)

    def work(timer: Timer) -> None:
        call, kind, message = next(turn)
        try:
            with timer:
                call()
        except kind as error:
            if message not in str(error):
                raise
        else:
            raise WrongResultError(f"no {kind.__name__} with {message!r}")

    return work

"""Gradients of the tables of an `EmbeddingBagCollection`: of each feature, then of each table.

Tested in tests/collection/test_training.py.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from embag import _arguments
from embag._bags import ArrayBags, as_bags
from embag._call import Call
from embag._process import threads
from embag._terms import Terms
from embag._types import Table
from embag.backward import EmbeddingBagGrads, Form, Gradient, gradients_of, table_of
from embag.sparse_rows import SparseRows

AnyArray = NDArray[Any]


class Part(NamedTuple):
    """A feature's lookup, and the gradient of its output."""

    name: str
    table: str
    call: Call
    grad_output: AnyArray


def split_grad_output(
    given: Any, shape: tuple[int, int], unpooled: Mapping[str, tuple[int, ...]]
) -> tuple[AnyArray, Mapping[str, Any]]:
    """Return the gradient of the pooled columns, and those of the features without bags."""
    pooled, rows = given, dict[str, Any]()
    if unpooled:
        if not (isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping)):
            raise TypeError(
                "grad_output must be (array, dict), as the output where features have mode "
                f"'none', got {_arguments.describe(given)}"
            )
        pooled, rows = given
        if rows.keys() != unpooled.keys():
            raise ValueError(
                f"grad_output must have rows for {', '.join(map(repr, unpooled))}, "
                f"got {', '.join(map(repr, rows)) or 'none'}"
            )
    array = _arguments.as_numbers(pooled, "grad_output")
    if array.shape != shape:
        raise ValueError(f"grad_output must have the output's shape {shape}, got {array.shape}")
    arrays = {name: _arguments.as_numbers(rows[name], f"grad_output[{name!r}]") for name in rows}
    for name, expected in unpooled.items():
        if arrays[name].shape != expected:
            raise ValueError(
                f"grad_output[{name!r}] must have shape {expected}, got {arrays[name].shape}"
            )
    return array, arrays


def gradients(
    parts: list[Part],
    tables: Mapping[str, Table],
    wrt: Literal["weight", "per_sample_weights"] | None,
    form: Form,
    num_threads: int | None,
) -> EmbeddingBagGrads:
    """Return the gradients of tables, by name, and those of the weights, by feature."""
    n_features = Counter(part.table for part in parts)
    of_tables: dict[str, list[Gradient]] = {}
    of_weights: dict[str, AnyArray] = {}
    for part in parts:
        call = part.call
        of = wrt if call.weights is not None else "weight"
        if wrt == "per_sample_weights" and call.weights is None:
            continue
        with _arguments.prefix_errors(f"feature {part.name!r}"):
            # The collection's own has scales of float32.
            table = table_of(tables[part.table], f"tables[{part.table!r}]")
            weights = call.weights
            if isinstance(weights, np.ndarray):  # those of lists are converted later
                weights = _arguments.cast(weights, table.sums_dtype)
            grads = gradients_of(
                dataclasses.replace(call, table=table, weights=weights, num_threads=num_threads),
                part.grad_output,
                tables[part.table],
                wrt=of,
                form=form if n_features[part.table] == 1 else "sparse",
            )
        if grads.weight is not None:
            of_tables.setdefault(part.table, []).append(grads.weight)
        if grads.per_sample_weights is not None:
            of_weights[part.name] = grads.per_sample_weights
    limit = nullcontext() if num_threads is None else threads.num_threads(num_threads)
    with limit:
        summed = {name: _sum(found, form) for name, found in of_tables.items()}
    return EmbeddingBagGrads(summed, of_weights)


def _sum(found: list[Gradient], form: Form) -> Gradient:
    """Return the sum of the gradients of features that share a table, in the order of features."""
    if len(found) == 1:
        return found[0]
    parts = cast(list[SparseRows], found)
    indices = np.concatenate([part.indices for part in parts])
    values = np.concatenate([part.values for part in parts])
    if form == "sparse":
        return SparseRows.from_pairs(indices, values, parts[0].shape)
    bags = as_bags(indices.reshape(-1, 1), None, None, False)
    return Terms(values, cast(ArrayBags, bags), len(indices), None, -1, False, parts[0].shape[0])

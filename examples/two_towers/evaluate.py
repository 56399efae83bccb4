"""Hit rates of the towers and of the ways of examples/baskets, on the same households."""

from typing import NamedTuple

import numpy as np
import pooling
from choice import WAYS, WAYS_FOR_NEW, K, market
from numpy.typing import NDArray
from recommend import Hits, cases, hits, new_to, recommend, score_vectors
from vectors import product_vectors

import embag

N_RESAMPLES = 10_000


class Evaluation(NamedTuple):
    """Hits by way: of the whole next basket, and of what is new to the household in it."""

    all: dict[str, Hits]
    new: dict[str, Hits]


class Rate(NamedTuple):
    """A mean over households, and its bootstrap interval."""

    mean: float
    low: float
    high: float


def evaluate_baskets(parts, choice):
    """Evaluate the ways of examples/baskets, with the options chosen there."""
    vectors = product_vectors(parts.before, parts.catalogue, choice.n_dims)
    households = pooling.pool_with_embag(parts.histories, vectors.inputs)
    return _evaluate(parts, households, vectors.outputs, choice.share, WAYS, WAYS_FOR_NEW)


def evaluate_towers(parts, tables):
    """Evaluate trained tables."""
    ways = {"two towers": score_vectors}
    return _evaluate(parts, user_vectors(parts.histories, tables), tables.outputs, 0, ways, ways)


def user_vectors(histories, tables):
    """Pool the histories of all households; append a 1 for the bias of the products."""
    users = embag.embedding_bag(
        histories["products"],
        tables.inputs,
        mode="mean",
        per_sample_weights=histories["weights"],
    )
    return np.column_stack([users, np.ones(len(users), users.dtype)])


def _evaluate(parts, households, outputs, share, ways, ways_for_new):
    known = cases(parts, households, len(parts.catalogue))
    known_new = new_to(known)
    of_products = market(parts.catalogue, outputs, share)
    return Evaluation(
        {
            name: hits(recommend(way, known, of_products), known.baskets)
            for name, way in ways.items()
        },
        {
            name: hits(recommend(ways[name], known_new, of_products, new=True), known_new.baskets)
            for name in ways_for_new
        },
    )


def by_household(*several):
    """Return the share of some results, one for each seed, that have a hit among the first K."""
    return np.mean([some.by_household[:, K - 1] for some in several], axis=0)


def bootstrap(values: NDArray[np.float64]) -> Rate:
    """Return the mean of a value for each household, and an interval of 95 %.

    The households are drawn again with replacement. For the difference of two ways on the same
    households, this is a paired bootstrap.
    """
    rng = np.random.default_rng(0)
    n = len(values)
    means = [values[rng.integers(n, size=n)].mean() for _ in range(N_RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return Rate(float(values.mean()), float(low), float(high))

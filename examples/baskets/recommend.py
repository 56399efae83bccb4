"""Ways to recommend: each scores every product, and its hits are counted.

A product is "new" to a household that did not buy it before the cut. For the results on new
products, all other products are removed from the recommendations and from the basket.
"""

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

LONGEST = 20  # products recommended
_CHUNK = 256  # households whose scores are in memory at once


class Cases(NamedTuple):
    """The households that came back: their histories, and their next baskets."""

    households: NDArray[np.int64]
    counts: csr_array  # (n_cases, n_products): the purchases before
    weights: csr_array  # the same, each with its weight
    vectors: NDArray[np.float32]  # (n_cases, n_dims)
    baskets: csr_array  # (n_cases, n_products): 1 for a product in the next basket

    def at(self, chosen):
        """Return the chosen cases."""
        return Cases(*(part[chosen] for part in self))


def cases(split, vectors_of, n_products):
    """Return the cases of a split.

    `vectors_of` has the vectors of all households with a history, in their order.
    """
    households = split.next_baskets["household"].to_numpy()
    position = np.searchsorted(split.histories["household"], households)
    histories = split.histories.take(position)
    return Cases(
        households,
        counts=as_matrix(histories["products"], None, n_products),
        weights=as_matrix(histories["products"], histories["weights"], n_products),
        vectors=vectors_of[position],
        baskets=as_matrix(split.next_baskets["products"], None, n_products),
    )


def as_matrix(lists, values, n_products):
    """Return a matrix with a row for each list of products; duplicates are summed."""
    products = pc.list_flatten(lists).to_numpy()
    entries = np.ones(len(products)) if values is None else pc.list_flatten(values).to_numpy()
    ends = np.cumsum(pc.list_value_length(lists).to_numpy())
    matrix = csr_array(
        (entries.astype(np.float32), products, np.insert(ends, 0, 0)), (len(ends), n_products)
    )
    matrix.sum_duplicates()
    return matrix


class Market(NamedTuple):
    """The products before the cut: popularity and vectors."""

    baskets: NDArray[np.float32]  # (n_products,): the number of baskets with each product
    lately: NDArray[np.float32]  # (n_products,): the same, in the last four weeks
    outputs: NDArray[np.float32]  # (n_products, n_dims)
    share: float  # of the vectors, in `score_vectors_and_purchases`


def score_popularity(known, market):
    """Score products by the number of baskets, equally for all households."""
    return np.tile(market.baskets, (len(known.households), 1))


def score_recent_popularity(known, market):
    """Score products by the number of baskets in the last four weeks before the cut."""
    return np.tile(market.lately, (len(known.households), 1))


def score_purchases(known, market):
    """Score products by the purchases of the household; popularity breaks ties."""
    return known.counts.toarray() + market.baskets / (1 + market.baskets.sum())


def score_recent_purchases(known, market):
    """Score products by the purchases of the household, weighted as for the vectors."""
    return known.weights.toarray()


def score_vectors(known, market):
    """Score products by the dot product of their vectors with that of the household."""
    return known.vectors @ market.outputs.T


def score_vectors_and_purchases(known, market):
    """Score products by recent purchases plus a share of the dot product."""
    score = score_vectors(known, market)
    largest = np.abs(score).max(axis=1, keepdims=True)
    score /= np.where(largest, largest, 1)
    return score_recent_purchases(known, market) + market.share * score


def recommend(way, known, market, *, new=False):
    """Return the products recommended to each household, the best first."""
    found = np.empty((len(known.households), LONGEST), np.int64)
    for start in range(0, len(found), _CHUNK):
        some = known.at(slice(start, start + _CHUNK))
        score = way(some, market)
        if new:
            score[some.counts.nonzero()] = -np.inf
        found[start : start + _CHUNK] = top(score, LONGEST)
    return found


def top(score, n):
    """Return the columns of the n largest entries of each row, the largest first."""
    best = np.argpartition(-score, n - 1, axis=1)[:, :n]
    order = np.argsort(-np.take_along_axis(score, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)


class Hits(NamedTuple):
    """Hit rates and recalls for k = 1, 2, ... recommended products."""

    rate: NDArray[np.float64]  # the share of households with at least one of the k in the basket
    recall: NDArray[np.float64]  # the mean share of the products in a basket among the k
    by_household: NDArray[np.bool_]  # (n_cases, LONGEST)


def hits(found, baskets):
    """Compare recommended products with baskets, none of which may be empty."""
    in_basket = baskets[np.arange(len(found))[:, np.newaxis], found].toarray() > 0
    n_right = np.cumsum(in_basket, axis=1)
    sizes = (baskets > 0).sum(axis=1)[:, np.newaxis]
    return Hits((n_right > 0).mean(axis=0), (n_right / sizes).mean(axis=0), n_right > 0)


def chance(baskets, n_products, k):
    """Return the expected hit rate of k random products."""
    sizes = np.asarray((baskets > 0).sum(axis=1))
    misses = np.ones(len(sizes))
    for drawn in range(k):
        misses *= np.maximum(n_products - sizes - drawn, 0) / (n_products - drawn)
    return float(1 - misses.mean())


def new_to(known):
    """Return the cases whose next basket has new products, with only these in the basket."""
    bought = known.counts > 0
    fresh = known.baskets - known.baskets.multiply(bought)
    fresh.eliminate_zeros()
    some = np.flatnonzero(np.diff(fresh.indptr))
    return known.at(some)._replace(baskets=fresh[some])

"""Ways to recommend, each a score for every product, and how often they are right.

"New" is what a household has not bought before the cut: the rest is then left out of what
is recommended, and out of the basket.
"""

from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.sparse import csr_array

LONGEST = 20  # products recommended
_CHUNK = 256  # households whose scores are in memory at the same time


class Cases(NamedTuple):
    """The households that came back: what is known of them, and what they bought next."""

    households: NDArray[np.int64]
    counts: csr_array  # (n_cases, n_products): the purchases before
    weights: csr_array  # the same, each with its weight
    vectors: NDArray[np.float32]  # (n_cases, n_dims)
    baskets: csr_array  # (n_cases, n_products): 1 for what is in the next basket

    def at(self, chosen):
        """Return some of them."""
        return Cases(*(part[chosen] for part in self))


def cases(split, vectors_of, n_products):
    """Put together what is known of the households that came back.

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
    """Return a row for each list of products; a product that is there twice counts twice."""
    products = pc.list_flatten(lists).to_numpy()
    entries = np.ones(len(products)) if values is None else pc.list_flatten(values).to_numpy()
    ends = np.cumsum(pc.list_value_length(lists).to_numpy())
    matrix = csr_array(
        (entries.astype(np.float32), products, np.insert(ends, 0, 0)), (len(ends), n_products)
    )
    matrix.sum_duplicates()
    return matrix


class Market(NamedTuple):
    """What is known of the products, from before the cut."""

    baskets: NDArray[np.float32]  # (n_products,): those that each was in
    lately: NDArray[np.float32]  # (n_products,): in the last four weeks
    outputs: NDArray[np.float32]  # (n_products, n_dims)
    share: float  # of the vectors, in `together`


def popular(known, market):
    """Order by the baskets a product was in: the same for everyone."""
    return np.tile(market.baskets, (len(known.households), 1))


def popular_lately(known, market):
    """Order by the baskets of the last four weeks before the cut."""
    return np.tile(market.lately, (len(known.households), 1))


def bought_most(known, market):
    """Order by the household's own baskets with it, and those alike by popularity."""
    return known.counts.toarray() + market.baskets / (1 + market.baskets.sum())


def bought_lately(known, market):
    """Order by the household's own purchases as they are weighted for the vectors."""
    return known.weights.toarray()


def near(known, market):
    """Order by the product of the household's vector and the product's."""
    return known.vectors @ market.outputs.T


def together(known, market):
    """Add up what the household bought lately and how near a product is."""
    score = near(known, market)
    largest = np.abs(score).max(axis=1, keepdims=True)
    score /= np.where(largest, largest, 1)
    return bought_lately(known, market) + market.share * score


def recommend(way, known, market, *, new=False):
    """Return the products that each household is recommended, the best first."""
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
    """For k = 1, 2, ...: how often one of k is in the basket, and how much of the basket."""

    rate: NDArray[np.float64]  # the households with one of the k or more in the basket
    recall: NDArray[np.float64]  # the mean share of a basket's products among the k
    by_household: NDArray[np.bool_]  # (n_cases, LONGEST)


def hits(found, baskets):
    """Compare what is recommended with the baskets, none of which may be empty."""
    in_basket = baskets[np.arange(len(found))[:, np.newaxis], found].toarray() > 0
    n_right = np.cumsum(in_basket, axis=1)
    sizes = (baskets > 0).sum(axis=1)[:, np.newaxis]
    return Hits((n_right > 0).mean(axis=0), (n_right / sizes).mean(axis=0), n_right > 0)


def chance(baskets, n_products, k):
    """Return the hit rate to expect of k products drawn blindly."""
    sizes = np.asarray((baskets > 0).sum(axis=1))
    misses = np.ones(len(sizes))
    for drawn in range(k):
        misses *= np.maximum(n_products - sizes - drawn, 0) / (n_products - drawn)
    return float(1 - misses.mean())


def new_to(known):
    """Return the households whose next basket has something new, with that alone in it."""
    bought = known.counts > 0
    fresh = known.baskets - known.baskets.multiply(bought)
    fresh.eliminate_zeros()
    some = np.flatnonzero(np.diff(fresh.indptr))
    return known.at(some)._replace(baskets=fresh[some])

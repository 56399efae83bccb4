"""The ways to recommend, and the choices among their options, made on the validation split."""

from typing import NamedTuple

import numpy as np
import pooling
from recommend import (
    Market,
    cases,
    hits,
    new_to,
    recommend,
    score_popularity,
    score_purchases,
    score_recent_popularity,
    score_recent_purchases,
    score_vectors,
    score_vectors_and_purchases,
)
from split import split
from vectors import product_vectors

VALIDATION = "2017-11-06"  # DIMS and SHARES are chosen by the four weeks from this day
TEST = "2017-12-04"  # the four weeks from this day are reported, and used for no choice
DIMS = (16, 32, 64, 128)
SHARES = (0.5, 1, 2, 4)
K = 10

WAYS = {
    "popular": score_popularity,
    "popular lately": score_recent_popularity,
    "bought most": score_purchases,
    "bought lately": score_recent_purchases,
    "vectors": score_vectors,
    "vectors + bought lately": score_vectors_and_purchases,
}
WAYS_FOR_NEW = ("popular", "popular lately", "vectors")


class Choice(NamedTuple):
    """The choices made on the validation split, with the hit rates there."""

    n_dims: int
    share: float
    by_dims: dict[int, float]  # for products new to the household
    by_share: dict[float, float]
    popular: dict[str, float]  # of the other ways, for products new to the household


def market(catalogue, outputs, share):
    """Return the market of a catalogue: popularity and vectors of its products."""
    baskets, lately = (catalogue[name].to_numpy(np.float32) for name in ("baskets", "lately"))
    return Market(baskets, lately, outputs, share)


def choose(purchases, products):
    """Choose the dimensions by new products and the share by all, on the validation split."""
    parts = split(purchases, products, VALIDATION)
    vectors = product_vectors(parts.before, parts.catalogue, max(DIMS))
    households = pooling.pool_with_embag(parts.histories, vectors.inputs)
    known = cases(parts, households, len(parts.catalogue))
    known_new = new_to(known)

    def with_dims(some, n_dims):
        # Columns are summed separately, so the first ones are the vectors of fewer dimensions.
        return some._replace(vectors=some.vectors[:, :n_dims])

    by_dims = {}
    for n_dims in DIMS:
        of_products = market(parts.catalogue, vectors.outputs[:, :n_dims], share=0)
        some = with_dims(known_new, n_dims)
        by_dims[n_dims] = rate(recommend(score_vectors, some, of_products, new=True), some)
    n_dims = max(by_dims, key=by_dims.get)

    by_share = {}
    for share in SHARES:
        of_products = market(parts.catalogue, vectors.outputs[:, :n_dims], share)
        some = with_dims(known, n_dims)
        by_share[share] = rate(recommend(score_vectors_and_purchases, some, of_products), some)
    by_popularity = {
        name: rate(recommend(WAYS[name], known_new, of_products, new=True), known_new)
        for name in WAYS_FOR_NEW
        if WAYS[name] is not score_vectors
    }
    return Choice(n_dims, max(by_share, key=by_share.get), by_dims, by_share, by_popularity)


def rate(found, known):
    return float(hits(found, known.baskets).rate[K - 1])

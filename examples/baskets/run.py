"""Recommend groceries: purchases -> histories -> vectors -> what is in the next basket?

    python examples/baskets/run.py [--folder build/baskets] [--every N]

README.md tells what each step is, and what came of it.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import page
import pooling
from purchases import load
from recommend import (
    Cases,
    Hits,
    Market,
    bought_lately,
    bought_most,
    cases,
    chance,
    hits,
    near,
    new_to,
    popular,
    popular_lately,
    recommend,
    together,
)
from split import Split, save, split
from vectors import product_vectors

import embag

VALIDATION = "2017-11-06"  # the four weeks from here choose of DIMS and SHARES
TEST = "2017-12-04"  # those from here are reported, and choose nothing
DIMS = (16, 32, 64, 128)
SHARES = (0.5, 1, 2, 4)
K = 10

WAYS = {
    "popular": popular,
    "popular lately": popular_lately,
    "bought most": bought_most,
    "bought lately": bought_lately,
    "vectors": near,
    "vectors + bought lately": together,
}
WAYS_FOR_NEW = ("popular", "popular lately", "vectors")


class Choice(NamedTuple):
    """What was chosen on the validation split, and the hit rates there."""

    n_dims: int
    share: float
    by_dims: dict[int, float]  # for what is new to the household
    by_share: dict[float, float]
    popular: dict[str, float]  # the popular ways, for what is new to the household


class Results(NamedTuple):
    """All that the page tells."""

    n_purchases: int
    split: Split
    choice: Choice
    known: Cases
    known_new: Cases
    hits: dict[str, Hits]
    hits_new: dict[str, Hits]
    chance: float
    chance_new: float
    found: dict[str, Any]
    found_new: Any
    pooling: dict[str, Any]  # the summary of `embag pool`
    seconds: dict[str, float]  # of pooling in this process, by way
    factorising: float  # seconds


def market(catalogue, outputs, share):
    """Put together what is known of the products."""
    baskets, lately = (catalogue[name].to_numpy(np.float32) for name in ("baskets", "lately"))
    return Market(baskets, lately, outputs, share)


def choose(purchases, products):
    """Choose the dimensions by what is new, the share by all, four weeks before the test."""
    parts = split(purchases, products, VALIDATION)
    vectors = product_vectors(parts.before, parts.catalogue, max(DIMS))
    households = pooling.pool_with_embag(parts.histories, vectors.inputs)
    known = cases(parts, households, len(parts.catalogue))
    known_new = new_to(known)

    def with_dims(some, n_dims):
        # Sums are by column: the first columns are the vectors of fewer dimensions.
        return some._replace(vectors=some.vectors[:, :n_dims])

    by_dims = {}
    for n_dims in DIMS:
        of_products = market(parts.catalogue, vectors.outputs[:, :n_dims], share=0)
        some = with_dims(known_new, n_dims)
        by_dims[n_dims] = rate(recommend(near, some, of_products, new=True), some)
    n_dims = max(by_dims, key=by_dims.get)

    by_share = {}
    for share in SHARES:
        of_products = market(parts.catalogue, vectors.outputs[:, :n_dims], share)
        some = with_dims(known, n_dims)
        by_share[share] = rate(recommend(together, some, of_products), some)
    by_popularity = {
        name: rate(recommend(WAYS[name], known_new, of_products, new=True), known_new)
        for name in WAYS_FOR_NEW
        if WAYS[name] is not near
    }
    return Choice(n_dims, max(by_share, key=by_share.get), by_dims, by_share, by_popularity)


def rate(found, known):
    return float(hits(found, known.baskets).rate[K - 1])


def main(folder, every=1):
    """Do all of it in a folder; return the results."""
    purchases, products = load(every)
    choice = choose(purchases, products)

    parts = split(purchases, products, TEST)
    save(parts, folder)
    start = time.perf_counter()
    vectors = product_vectors(parts.before, parts.catalogue, choice.n_dims)
    factorising = time.perf_counter() - start
    embag.save_table(folder / "products.npy", vectors.inputs)
    embag.save_table(folder / "outputs.npy", vectors.outputs)

    summary = pooling.pool_files(folder)
    households = pooling.read_vectors(folder)
    pooling.check(households, parts.histories, vectors.inputs)

    known = cases(parts, households, len(parts.catalogue))
    known_new = new_to(known)
    of_products = market(parts.catalogue, vectors.outputs, choice.share)
    found = {name: recommend(way, known, of_products) for name, way in WAYS.items()}
    found_new = {
        name: recommend(WAYS[name], known_new, of_products, new=True) for name in WAYS_FOR_NEW
    }
    return Results(
        n_purchases=len(purchases),
        split=parts,
        choice=choice,
        known=known,
        known_new=known_new,
        hits={name: hits(rows, known.baskets) for name, rows in found.items()},
        hits_new={name: hits(rows, known_new.baskets) for name, rows in found_new.items()},
        chance=chance(known.baskets, len(parts.catalogue), K),
        chance_new=chance(known_new.baskets, len(parts.catalogue), K),
        found=found,
        found_new=found_new["vectors"],
        pooling=summary,
        seconds=pooling.times(parts.histories, embag.aligned_copy(vectors.inputs)),
        factorising=factorising,
    )


def command(arguments=None):
    """Do it all and tell."""
    parser = argparse.ArgumentParser(description="Recommend groceries.")
    parser.add_argument("--folder", type=Path, default=Path("build/baskets"))
    parser.add_argument("--every", type=int, default=1, help="of so many households take one")
    arguments = parser.parse_args(arguments)
    results = main(arguments.folder, arguments.every)
    page.show(results, K)
    page.plot(results, K, arguments.folder / "hits.png")


if __name__ == "__main__":
    command()

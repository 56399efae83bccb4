"""Recommend groceries: from purchases to histories, to vectors, to the next basket.

    python examples/baskets/run.py [--folder build/baskets] [--every N]

README.md explains the steps and has the results.
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
    cases,
    chance,
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
from split import Split, save, split
from vectors import product_vectors

import embag

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


class Results(NamedTuple):
    """The contents of the page."""

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


def main(folder, every=1):
    """Run all steps in a folder; return the results."""
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
    """Run all steps, and print and plot the results."""
    parser = argparse.ArgumentParser(description="Recommend groceries.")
    parser.add_argument("--folder", type=Path, default=Path("build/baskets"))
    parser.add_argument("--every", type=int, default=1, help="use one in N households")
    arguments = parser.parse_args(arguments)
    results = main(arguments.folder, arguments.every)
    page.show(results, K)
    page.plot(results, K, arguments.folder / "hits.png")


if __name__ == "__main__":
    command()

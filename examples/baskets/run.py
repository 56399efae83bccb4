"""Recommend groceries: from purchases to histories, to vectors, to the next basket.

    python examples/baskets/run.py [--folder build/baskets] [--every N]

README.md explains the steps and has the results.
"""

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import page
import pooling
from choice import TEST, WAYS, WAYS_FOR_NEW, Choice, K, choose, market
from purchases import load
from recommend import Cases, Hits, cases, chance, hits, new_to, recommend
from split import Split, save, split
from vectors import product_vectors

import embag


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

"""Train two towers on groceries, and compare them with the vectors of examples/baskets.

    python examples/two_towers/run.py [--every N]

README.md explains the model and has the results.
"""

import argparse
import time
from typing import NamedTuple

import baskets  # noqa: F401
import numpy as np
import report
from batches import read_log
from choice import TEST, VALIDATION, Choice, K, choose
from evaluate import Evaluation, evaluate_baskets, evaluate_towers
from purchases import load
from split import Split, split
from train import train

DIMS = (16, 32, 64)
N_PASSES = 4  # at most
SEEDS_TO_CHOOSE = (100, 101, 102)
SEEDS = (0, 1, 2, 3, 4)


class TowersChoice(NamedTuple):
    """The choice made on the validation split."""

    n_dims: int
    n_passes: int
    rates: dict[int, list[float]]  # by dimensions and passes: hits, new to them; means of seeds


class Results(NamedTuple):
    """The contents of the report."""

    split: Split
    baskets_choice: Choice
    choice: TowersChoice
    baskets: Evaluation
    towers: list[Evaluation]  # one for each seed
    losses: list[list[float]]  # by seed and pass
    seconds: list[float]  # of training, by seed


def choose_towers(purchases, products):
    """Choose the dimensions and the number of passes by new products, on the validation split."""
    parts = split(purchases, products, VALIDATION)
    log = read_log(parts)
    rates = {}
    for n_dims in DIMS:
        by_seed = [
            [
                evaluate_towers(parts, tables).new["two towers"].rate[K - 1]
                for tables, _ in train(log, n_dims, N_PASSES, seed)
            ]
            for seed in SEEDS_TO_CHOOSE
        ]
        rates[n_dims] = np.mean(by_seed, axis=0).tolist()
    n_dims = max(rates, key=lambda n_dims: max(rates[n_dims]))
    return TowersChoice(n_dims, 1 + int(np.argmax(rates[n_dims])), rates)


def main(every=1):
    """Run all steps; return the results."""
    purchases, products = load(every)
    baskets_choice = choose(purchases, products)
    choice = choose_towers(purchases, products)

    parts = split(purchases, products, TEST)
    log = read_log(parts)
    towers, losses, seconds = [], [], []
    for seed in SEEDS:
        start = time.perf_counter()
        passes = list(train(log, choice.n_dims, choice.n_passes, seed))
        seconds.append(time.perf_counter() - start)
        losses.append([loss for _, loss in passes])
        tables, _ = passes[-1]
        towers.append(evaluate_towers(parts, tables))
    return Results(
        split=parts,
        baskets_choice=baskets_choice,
        choice=choice,
        baskets=evaluate_baskets(parts, baskets_choice),
        towers=towers,
        losses=losses,
        seconds=seconds,
    )


def command(arguments=None):
    """Run all steps, and print the results."""
    parser = argparse.ArgumentParser(description="Train two towers on groceries.")
    parser.add_argument("--every", type=int, default=1, help="use one in N households")
    report.show(main(parser.parse_args(arguments).every))


if __name__ == "__main__":
    command()

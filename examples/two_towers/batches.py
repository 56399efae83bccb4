"""Batches to train with: baskets, each with the purchases of the household before it.

The history of a basket is a prefix of the household's list in `histories.parquet`, so the basket
itself is never in it. The weights of the list may stay as they are: they halve for a constant
number of days, so those of a prefix differ from the weights on the day of the basket by one
factor, which a weighted mean cancels.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from numpy.typing import NDArray
from split import HALF_LIFE

SIZE = 256  # baskets in a batch
N_UNIFORM = 1000  # candidates drawn from the whole catalogue


class Log(NamedTuple):
    """Purchases before the cut, sorted by household and time, and the baskets in them."""

    products: NDArray[np.int32]  # (n_purchases,)
    weights: NDArray[np.float32]  # (n_purchases,)
    begins: NDArray[np.int64]  # (n_baskets,): where the history of the household begins
    starts: NDArray[np.int64]  # (n_baskets,): where the basket starts, and its history ends
    ends: NDArray[np.int64]  # (n_baskets,): where the basket ends
    chances: NDArray[np.float64]  # (n_baskets,): how often it is drawn; 0 without a history
    popularity: NDArray[np.float64]  # (n_products,): the expected share of all targets


class Batch(NamedTuple):
    """Histories, targets, and the candidates among which the targets are to be found."""

    ids: NDArray[np.int32]  # (n_ids,): the histories
    offsets: NDArray[np.int64]  # (n_baskets,)
    weights: NDArray[np.float32]  # (n_ids,)
    candidates: NDArray[np.int64]  # (n_candidates,): products, sorted and unique
    log_chances: NDArray[np.float32]  # (n_candidates,): of being a candidate
    targets: tuple[NDArray[np.int64], NDArray[np.int64]]  # baskets, and positions in candidates
    shares: NDArray[np.float32]  # (n_targets,): 1 / the number of targets of the basket


def read_log(parts):
    """Return the log of a split."""
    before, histories = parts.before, parts.histories
    order = np.argsort(before.household, kind="stable")  # the order of histories
    baskets = before.basket.to_numpy()[order]
    ages = ((parts.cut - before.time) / pd.Timedelta(days=1)).to_numpy()[order]
    starts = np.flatnonzero(np.append(True, baskets[1:] != baskets[:-1]))
    ends = np.append(starts[1:], len(baskets))
    lengths = pc.list_value_length(histories["products"]).to_numpy()
    begins = np.repeat(np.cumsum(lengths) - lengths, lengths)[starts]
    # Recent baskets are drawn more often, and large ones, so that each purchase counts the same.
    chances = (ends - starts) * 0.5 ** (ages[starts] / HALF_LIFE) * (starts > begins)
    chances /= chances.sum()
    products = pc.list_flatten(histories["products"]).to_numpy()
    shares = np.repeat(chances / (ends - starts), ends - starts)
    return Log(
        products=products,
        weights=pc.list_flatten(histories["weights"]).to_numpy(),
        begins=begins,
        starts=starts,
        ends=ends,
        chances=chances,
        popularity=np.bincount(products, shares, len(parts.catalogue)),
    )


def draw(log, n_batches, seed):
    """Yield random batches."""
    rng = np.random.default_rng(seed)
    for _ in range(n_batches):
        baskets = rng.choice(len(log.chances), SIZE, p=log.chances)
        yield batch(log, baskets, rng.integers(len(log.popularity), size=N_UNIFORM))


def batch(log, baskets, extra):
    """Return the batch of some baskets; its candidates are their products and `extra`."""
    history, offsets = _ranges(log.begins[baskets], log.starts[baskets])
    bought, ends = _ranges(log.starts[baskets], log.ends[baskets])
    sizes = np.diff(ends)
    products = log.products[bought]
    candidates, position = np.unique(np.append(products, extra), return_inverse=True)
    # The chance that a product is in neither of two samples, drawn with replacement.
    absent = len(products) * np.log1p(-log.popularity[candidates])
    absent += len(extra) * np.log1p(-1 / len(log.popularity))
    return Batch(
        ids=log.products[history],
        offsets=offsets[:-1],
        weights=log.weights[history],
        candidates=candidates,
        log_chances=np.log(-np.expm1(absent)).astype(np.float32),
        targets=(np.repeat(np.arange(len(baskets)), sizes), position[: len(products)]),
        shares=np.repeat(1 / sizes, sizes).astype(np.float32),
    )


def _ranges(starts, ends):
    """Return the concatenated ranges, and their offsets."""
    offsets = np.append(0, np.cumsum(ends - starts))
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], ends - starts), offsets

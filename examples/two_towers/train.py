"""Train the towers on a split, pass by pass."""

from batches import SIZE, draw
from towers import Towers, initial

LR = 0.05


def train(log, n_dims, n_passes, seed):
    """Yield the tables and the mean loss after each pass over as many baskets as there are.

    The tables are the same arrays each time: the next pass changes them.
    """
    towers = Towers(initial(log.popularity, n_dims, seed), LR)
    n_batches = len(log.starts) // SIZE + 1
    losses = []
    for batch in draw(log, n_passes * n_batches, seed):
        losses.append(towers.step(batch))
        if len(losses) == n_batches:
            yield towers.tables, sum(losses) / n_batches
            losses = []

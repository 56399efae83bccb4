"""Train with NumPy and with torch: the same losses, and the time of each.

    python examples/two_towers/compare.py [--every N]

All begin with the same tables and see the same batches. torch trains twice: with its own layer,
and with embag's.
"""

import argparse
import time

import baskets  # noqa: F401
import numpy as np
import torch
import towers
import towers_torch
from batches import draw, read_log
from choice import TEST
from purchases import load
from split import split
from train import LR

import embag.torch

N_DIMS = 64  # as run.py chooses
N_STEPS = 200
N_ROUNDS = 3
TOLERANCE = 1e-5  # relative: float32 sums in another order; 3e-7 was measured


def models(tables, lr=LR):
    """Return the three models, with copies of the tables."""
    return {
        "NumPy, embag.optim": towers.Towers(tables, lr),
        "torch, embag.torch.EmbeddingBag": towers_torch.Towers(
            tables, lr, embag.torch.EmbeddingBag
        ),
        "torch, torch.nn.EmbeddingBag": towers_torch.Towers(tables, lr, torch.nn.EmbeddingBag),
    }


def main(every=1):
    """Train each model several times, in turn; return the losses and the least seconds."""
    log = read_log(split(*load(every), TEST))
    tables = towers.initial(log.popularity, N_DIMS, seed=0)
    batches = list(draw(log, N_STEPS, seed=0))
    losses, seconds = {}, {}
    for _ in range(N_ROUNDS):
        for name, model in models(tables).items():
            start = time.perf_counter()
            losses[name] = np.array([model.step(batch) for batch in batches])
            seconds[name] = min(time.perf_counter() - start, seconds.get(name, np.inf))
    return losses, seconds


def command(arguments=None):
    """Train, print, and raise an error if the losses differ."""
    parser = argparse.ArgumentParser(description="Train with NumPy and with torch.")
    parser.add_argument("--every", type=int, default=1, help="use one in N households")
    losses, seconds = main(parser.parse_args(arguments).every)
    first = next(iter(losses.values()))
    print(f"{N_STEPS} steps; {embag.get_num_threads()} threads of embag, ", end="")
    print(f"{torch.get_num_threads()} of torch")
    for name, some in losses.items():
        difference = np.max(np.abs(some / first - 1))
        print(f"{name:32} loss {some[0]:.4f} to {some[-1]:.4f}, ", end="")
        print(f"at most {difference:.0e} from the first, ", end="")
        print(f"{1e3 * seconds[name] / N_STEPS:.1f} ms a step")
        if difference > TOLERANCE:
            raise AssertionError(f"the losses of {name} differ by {difference:.1e}")


if __name__ == "__main__":
    command()

"""The time of a small call of a layer of torch: `python -m benchmarks.small_layer`.

One bag of 20 ids in a table of 10,000 rows, D = 64, float32, in inference mode on one thread:
`torch.nn.EmbeddingBag` and `embag.torch.EmbeddingBag` in turn, in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

import embag
import embag.torch
from benchmarks import machine

N_ROWS, DIM, BAG_SIZE, N_CALLS = 10_000, 64, 20, 1000


def time_calls(call: Callable[[], object]) -> float:
    """Return the microseconds of a call."""
    start = time.perf_counter()
    for _ in range(N_CALLS):
        call()
    return (time.perf_counter() - start) / N_CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_layer", description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    n_rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    embag.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(N_ROWS, DIM, generator=generator)
    ids = torch.randint(N_ROWS, (BAG_SIZE,), generator=generator)
    of_torch = torch.nn.EmbeddingBag(N_ROWS, DIM, mode="sum", _weight=weight)
    of_embag = embag.torch.EmbeddingBag(N_ROWS, DIM, mode="sum", _weight=weight)
    inputs = {"1-D ids and offsets": (ids, torch.tensor([0])), "2-D ids": (ids[None],)}
    print(machine.processor()["name"])
    with torch.inference_mode():
        for name, arguments in inputs.items():
            assert torch.equal(of_torch(*arguments), of_embag(*arguments))
            rounds = [
                [time_calls(lambda: layer(*arguments)) for layer in (of_torch, of_embag)]  # noqa: B023
                for _ in range(n_rounds)
            ]
            theirs, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
            ratio = statistics.median(our / their for their, our in rounds)
            print(f"{name}: torch {theirs:.1f} us, embag {ours:.1f} us, {ratio:.2f} of torch")


if __name__ == "__main__":
    main()

"""A file for `load_checkpoint`."""

import numpy as np

import embag

from ..lookup_cases import MOST
from .files import attempt, join, write


def run(data):
    path = write("checkpoint.safetensors", data)
    loaded, end = attempt(path, embag.load_checkpoint, path, return_metadata=True)
    verified, other_end = attempt(path, embag.load_checkpoint, path, verify=True)
    if loaded is None:
        assert verified is None
    else:
        items, metadata = loaded
        assert type(metadata) is dict
        make_steps(items)
    return join([end, other_end])


def make_steps(items):
    for item in items.values():
        if isinstance(item, embag.optim.Optimizer) and item.table.size < MOST:
            n_steps = item.n_steps
            item.step(np.ones(item.table.shape, np.result_type(item.table, np.float32)))
            assert item.n_steps == n_steps + 1

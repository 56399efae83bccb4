"""Finalizers that run while `embedding_bag` looks at its arguments, and resize the ids.

The ids are referenced by garbage that the collector frees. From the last look at the layout of
the ids on, a call may not let the collector run.
"""

import contextlib
import gc

import numpy as np

import embag

N = 1 << 21
gc.disable()


class Resize:
    """Garbage in a cycle: when it is collected, it frees the memory of an array."""

    def __init__(self, array):
        self.array = array
        self.cycle = self

    def __del__(self):
        self.array.resize(1, refcheck=False)


table = np.ones((1000, 64), np.float32)
offsets = np.arange(0, N, 64)
out = np.empty((len(offsets), 64), np.float32)
for threshold in range(1, 25):
    gc.disable()
    gc.collect()
    ids = np.zeros(N, np.int64)
    Resize(ids)
    gc.set_threshold(threshold)
    gc.enable()
    with contextlib.suppress(ValueError, RuntimeError):  # resized before the last look
        embag.embedding_bag(ids, table, offsets, out=out, num_threads=1)
print("done")

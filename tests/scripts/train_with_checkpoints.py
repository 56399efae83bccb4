"""Train to a step, saving a checkpoint after each; go on from the file if there is one.

    python train_with_checkpoints.py FILE LAST_STEP [kill]

With `kill`, the process kills itself after the last step, in the next one, before it is saved.
"""

import os
import signal
import sys

import numpy as np

import embag

path, last = sys.argv[1], int(sys.argv[2])
kills = sys.argv[3:] == ["kill"]

if os.path.exists(path):
    items, metadata = embag.load_checkpoint(path, return_metadata=True)
else:
    rng = np.random.default_rng(0)
    items = {
        "user": embag.optim.Adam(rng.standard_normal((40, 8)).astype(np.float32), 0.05),
        "item": embag.optim.RowWiseAdagrad(rng.standard_normal((60, 8)), 0.1, frozen=[3, 4]),
        "bias": np.zeros(8),
    }
    metadata = {"step": 0, "rng": rng.bit_generator.state}
rng = np.random.default_rng()
rng.bit_generator.state = metadata["rng"]

for step in range(metadata["step"] + 1, last + 1 + kills):
    batch = {name: rng.integers(0, len(items[name].table), (16, 5)) for name in ("user", "item")}
    pooled = {
        name: embag.embedding_bag(ids, items[name].table, mode="mean")
        for name, ids in batch.items()
    }
    error = pooled["user"] + pooled["item"] + items["bias"] - 1
    loss = float((error**2).mean())
    for name, ids in batch.items():
        items[name].update(error, ids, mode="mean")
    items["bias"] -= 0.01 * error.sum(axis=0)
    if step > last:
        os.kill(os.getpid(), signal.SIGKILL)
    metadata = {"step": step, "rng": rng.bit_generator.state}
    embag.save_checkpoint(path, items, metadata=metadata)
    print(step, loss.hex(), flush=True)

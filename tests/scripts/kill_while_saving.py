"""Kill processes while they save checkpoints: the file is always that of one step.

    python kill_while_saving.py FOLDER

Each child trains and saves without end. It is killed at a chosen moment of `replacement`, by the
system in the middle of a write, or by its parent after some milliseconds.
"""

import os
import random
import resource
import signal
import sys
import time

import numpy as np

import embag

FOLDER = sys.argv[1]
PATH = os.path.join(FOLDER, "training.safetensors")
SHAPE = (4000, 16)
READER, WRITER = os.pipe()  # a byte for each file that is in place


def kill_me(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def kill_before(name):
    setattr(os, name, kill_me)


def kill_after(name):
    call = getattr(os, name)

    def call_and_kill(*arguments, **options):
        call(*arguments, **options)
        kill_me()

    setattr(os, name, call_and_kill)


def kill_in_write(n_bytes):
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))


def check():
    """Check that the file is a whole checkpoint, and return its step."""
    items, metadata = embag.load_checkpoint(PATH, return_metadata=True)
    step = metadata["step"]
    optimizer = items["item"]
    assert optimizer.n_steps == step
    assert (optimizer.table == -step).all()
    assert (items["count"] == step).all()
    return step


def train():
    """Subtract 1 from every entry at each step, and save."""
    items, metadata = embag.load_checkpoint(PATH, return_metadata=True)
    step = metadata["step"]
    while True:
        step += 1
        items["item"].step(np.ones(SHAPE, np.float32))
        items["count"] += 1
        embag.save_checkpoint(PATH, items, metadata={"step": step})
        os.write(WRITER, b"1")


def run_child(prepare):
    """Run a child, which `prepare` ends; return its status."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            train()
        finally:
            os._exit(1)
    return child


def step_after_kill(prepare):
    _, status = os.waitpid(run_child(prepare), 0)
    assert os.WIFSIGNALED(status), status
    return check()


optimizer = embag.optim.SGD(np.zeros(SHAPE, np.float32), lr=1, momentum=0)
count = np.zeros(3, np.int64)
embag.save_checkpoint(PATH, {"item": optimizer, "count": count}, metadata={"step": 0})
n_bytes = os.path.getsize(PATH)

# Moments at which the new file is not in place, and one at which it is.
for prepare in (
    lambda: kill_in_write(1),
    lambda: kill_in_write(600),
    lambda: kill_in_write(n_bytes // 2),
    lambda: kill_in_write(n_bytes - 1),
    lambda: kill_before("fsync"),
    lambda: kill_after("fsync"),
    lambda: kill_before("replace"),
):
    assert step_after_kill(prepare) == 0
assert step_after_kill(lambda: kill_after("replace")) == 1

# Any moment after the first file of a child.
rng = random.Random(0)
n_steps = 1
for _ in range(30):
    child = run_child(lambda: None)
    os.read(READER, 1)
    time.sleep(rng.uniform(0, 0.03))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    os.write(WRITER, b"1")
    n_steps += len(os.read(READER, 1000))  # the byte before, and one read above
    # A child may be killed between its last file and the byte for it.
    assert n_steps <= check() <= n_steps + 1
    n_steps = check()

unfinished = [name for name in os.listdir(FOLDER) if name.endswith(".tmp")]
assert len(unfinished) >= 7  # the kills before the replacement were in the middle of saving
print(f"step {n_steps}, {len(unfinished)} unfinished files")

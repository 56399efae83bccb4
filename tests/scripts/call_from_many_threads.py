"""Many threads do all that has state, at the same time.

Each job is a function of a number that makes `work(round)`. A barrier starts each round of all
threads together. Every lookup has the bits of one on one thread. What threads do to shared objects
is counted: however their calls interleave, the counts at the end are the same.
"""

import faulthandler
import sys
import threading
import traceback

import numpy as np

import embag
from embag import Feature, optim, tuning
from embag._kernels.dispatch import kernels
from embag._process import threads

N_ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 30
COPIES = int(sys.argv[2]) if len(sys.argv) > 2 else 2  # threads for each job
TIMEOUT = 600

sys.setswitchinterval(1e-5)  # with a GIL: threads take turns more often
threads._N_MACHINE = 64  # calls get the threads that they request
tuning._MOST_CALLS = 1

RNG = np.random.default_rng(0)
N_ROWS, DIM = 500, 24
TABLE = RNG.random((N_ROWS, DIM), dtype=np.float32)
TABLES = {
    "float32": TABLE,
    "float64": TABLE.astype(np.float64),
    "float16": TABLE.astype(np.float16),
    "8-bit": embag.quantize(TABLE),
    "remapped": embag.RemappedTable(TABLE[:50], np.maximum(np.arange(N_ROWS) % 60 - 10, -1)),
}
try:  # a dtype that NumPy numbers when it is registered
    from ml_dtypes import bfloat16

    TABLES["bfloat16"] = TABLE.astype(bfloat16)
except ImportError:
    pass
MODES = ["sum", "mean", "max"]


def make_lookups(i):
    """Small lookups, which one compiled function makes, and large ones with teams of threads."""
    rng = np.random.default_rng(i)
    table, mode = list(TABLES.values())[i % len(TABLES)], MODES[i % len(MODES)]
    batches = []
    for n_bags, n_threads in ((1, 1), (8, 1), (400, 1), (400, 3)):
        lengths = rng.integers(0, 40, n_bags)
        ids, offsets = rng.integers(0, N_ROWS, lengths.sum()), np.cumsum(lengths) - lengths
        expected = embag.embedding_bag(ids, table, offsets, mode=mode, num_threads=1)
        batches.append((ids, offsets, n_threads, expected))

    def work(_):
        for ids, offsets, n_threads, expected in batches:
            result = embag.embedding_bag(ids, table, offsets, mode=mode, num_threads=n_threads)
            assert result.tobytes() == expected.tobytes()
        result = embag.embedding(ids, table, num_threads=3)
        assert result.shape == (len(ids), DIM)

    return work


SHARED_BLOCK = embag.num_threads(2)
MOST_THREADS = 64 if embag.show_config("dicts")["OpenMP"] else 1


def make_blocks(i):
    """Counts of threads: of the process, of a block that threads share, of a block of their own."""

    def work(_):
        embag.set_num_threads(1 + i % 3)
        with SHARED_BLOCK, embag.num_threads(1 + i % 4):
            assert embag.get_num_threads() == min(1 + i % 4, MOST_THREADS)
            with SHARED_BLOCK:
                assert embag.get_num_threads() == min(2, MOST_THREADS)
                embag.embedding_bag(np.arange(4000).reshape(-1, 4) % N_ROWS, TABLE)
            assert embag.get_num_threads() == min(1 + i % 4, MOST_THREADS)
        embag.set_num_threads(None)

    return work


def make_gradients(i):
    rng = np.random.default_rng(i)
    ids = rng.integers(0, N_ROWS, (300, 10))
    grad = rng.random((300, DIM), dtype=np.float32)
    weights = rng.random(ids.shape, dtype=np.float32)

    def compute(sparse, n_threads):
        grads = embag.embedding_bag_backward(
            *(grad, ids, TABLE),
            mode="sum",
            per_sample_weights=weights,
            sparse=sparse,
            wrt=None,
            num_threads=n_threads,
        )
        weight = grads.weight.to_dense() if sparse else grads.weight
        return weight.tobytes() + grads.per_sample_weights.tobytes()

    expected = compute(False, 1)

    def work(round):
        assert compute(round % 2 == 0, 1 + round % 3) == expected

    return work


# Every entry of a table is the number of its version: a call that reads two versions shows.
COLLECTION = embag.EmbeddingBagCollection(
    {"items": np.full((50, 16), 1.0), "users": np.full((50, 8), 1.0, np.float32)},
    [Feature("seen", "items"), Feature("bought", "items", "mean"), Feature("user", "users")],
    invalid="skip",
)
BY_NAME = {"seen": [[0, 1], [2], [70, 3, 80]], "bought": [[1], [], [3]], "user": [[1], [1], [1, 2]]}
IDS = np.array([0, 1, 2, 3, 90, 4, 5, 6, 7, 8, 9])
OFFSETS = np.array([0, 2, 3, 5, 6, 6, 7, 8, 9, 11])
COUNTS = np.repeat([[2, 1, 1], [1, 0, 1], [1, 1, 2]], [16, 16, 8], axis=0).T  # rows of each bag
N_SKIPPED = 3  # by `make_requests`, at each round


def make_requests(i):
    """Requests to a collection, by name and end to end, whose tables others replace."""
    versions = range(1, 1 + N_ROUNDS)

    def work(_):
        for rows in (COLLECTION(BY_NAME), COLLECTION(IDS, OFFSETS, num_threads=1 + i % 2)):
            items, users = rows[0, 0] / 2, rows[0, 32]
            assert items in versions
            assert users in versions
            assert (rows == COUNTS * np.repeat([items, users], [32, 8])).all(), rows

    return work


def make_replacements(i):
    name, shape = [("items", (50, 16)), ("users", (50, 8))][i % 2]

    def work(round):
        COLLECTION.replace(name, np.full(shape, 1.0 + round, np.float32))

    return work


# Each of these lists is changed by one thread, while others look all of them up.
CHANGING = [[0] * 10 * (1 + i) for i in range(COPIES)]
VALUES = {"a": CHANGING}
ONES = embag.EmbeddingBagCollection({"t": np.ones((50, 8), np.float32)}, [Feature("a", "t")])


def make_changes(i):
    own = CHANGING[i]

    def work(_):
        for _ in range(300):
            own.append(1000 + i)  # an int of its own, which is freed at once
            own[-1] = 7
            own.pop()
            own.extend([3] * 50)
            del own[-50:]
            VALUES["a"] = [*CHANGING]
            VALUES["a"] = CHANGING

    return work


def make_lookups_of_changing_lists(_):
    least = 10 * np.arange(1, 1 + COPIES)[:, None]

    def work(_):
        for _ in range(30):
            ids, offsets = kernels.ids_of_lists(CHANGING)
            assert offsets[0] == 0
            assert offsets[-1] == len(ids)
            assert np.isin(ids, [0, 3, 7, *range(1000, 1000 + COPIES)]).all(), ids
            try:
                rows = ONES(VALUES)
            except IndexError as error:  # of an id that is there for a moment
                assert "out of range" in str(error), error
                continue
            assert rows.shape == (COPIES, 8)
            assert (rows == rows[:, :1]).all(), rows
            assert (rows >= least).all(), rows

    return work


# An optimizer that threads share: each call makes a step, or is refused.
SHARED = optim.Adagrad(np.zeros((40, DIM), np.float32), lr=1.0, eps=0.0)
N_DONE = []


def refused(error):
    assert "one step at a time, got two calls at once" in str(error), error


def make_shared_steps(i):
    ids, grad = np.arange(40)[:, None], np.ones((40, DIM), np.float32)

    def work(round):
        try:
            if (i + round) % 2:
                SHARED.step(grad, num_threads=1 + round % 2)
            else:
                SHARED.update(grad, ids, mode="sum", num_threads=1 + round % 2)
            N_DONE.append(1)
        except RuntimeError as error:
            refused(error)
        try:
            state = SHARED.state_dict()
            assert (state["sum"] == state["step"]).all(), state
        except RuntimeError as error:
            refused(error)

    return work


def check_shared_optimizer():
    assert SHARED.n_steps == len(N_DONE) >= 1
    assert (SHARED.states["sum"] == len(N_DONE)).all()
    alone = optim.Adagrad(np.zeros((40, DIM), np.float32), lr=1.0, eps=0.0)
    for _ in N_DONE:
        alone.step(np.ones((40, DIM), np.float32))
    assert SHARED.table.tobytes() == alone.table.tobytes()


GROWING = optim.SGD(np.zeros((40, DIM), np.float32), lr=1.0)
N_STEPS_OF_GROWING = []


def make_growth(i):
    """Steps of an optimizer whose table another thread replaces by a larger one."""
    ids, grad = np.arange(40)[:, None], np.ones((40, DIM), np.float32)

    def work(_):
        try:
            if i == 0:
                GROWING.grow(len(GROWING.table) + 1)
            else:
                GROWING.update(grad, ids, mode="sum")
                N_STEPS_OF_GROWING.append(1)
        except RuntimeError as error:
            refused(error)
        except ValueError as error:  # of the table before and the shape of the new one
            assert "as it was" in str(error) or "grad must have shape" in str(error), error

    return work


def check_growing_optimizer():
    assert GROWING.n_steps == len(N_STEPS_OF_GROWING)
    assert (GROWING.table[:40] == -len(N_STEPS_OF_GROWING)).all()


def make_own_steps(i):
    """An optimizer of each thread's own."""
    rng = np.random.default_rng(i)
    ids = rng.integers(0, N_ROWS, (200, 10))
    grad = rng.random((200, DIM), dtype=np.float32)
    kind = [optim.Adam, optim.RowWiseAdagrad, optim.FTRL][i % 3]
    ours, alone = kind(TABLE.copy(), lr=0.1), kind(TABLE.copy(), lr=0.1)

    def work(round):
        ours.update(grad, ids, num_threads=1 + round % 3)
        alone.update(grad, ids, num_threads=1)
        assert ours.table.tobytes() == alone.table.tobytes()

    return work


def make_tuning(i):
    def work(round):
        embag.tune(TABLE[: 100 * (1 + i % 5)], n_threads=1 + i % 3)
        embag.show_config("dicts")
        if round % 10 == 9:
            kernels.forget_strategies()

    return work


JOBS = [
    make_lookups,
    make_lookups,
    make_lookups,
    make_blocks,
    make_gradients,
    make_requests,
    make_replacements,
    make_changes,
    make_lookups_of_changing_lists,
    make_shared_steps,
    make_growth,
    make_own_steps,
    make_tuning,
]


def main():
    faulthandler.dump_traceback_later(TIMEOUT, exit=True)
    work = [make(copy) for make in JOBS for copy in range(COPIES)]
    barrier = threading.Barrier(len(work))
    errors = []

    def run(do):
        try:
            for round in range(N_ROUNDS):
                barrier.wait(TIMEOUT)
                do(round)
        except threading.BrokenBarrierError:
            pass
        except BaseException:
            errors.append(traceback.format_exc())
            barrier.abort()

    crowd = [threading.Thread(target=run, args=[do]) for do in work]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    if errors:
        sys.exit("\n".join(errors))
    skipped = COLLECTION.n_invalid
    expected = {"seen": N_SKIPPED * COPIES * N_ROUNDS, "bought": 0, "user": 0}
    assert skipped == expected, skipped
    check_shared_optimizer()
    check_growing_optimizer()


if __name__ == "__main__":
    main()

"""Floating-point settings of a thread: no call depends on them or changes them.

`torch.set_flush_denormal` and libraries built with -ffast-math flush subnormals to zero;
`fesetround` changes the rounding. Each worker of OpenMP has its own settings, which it
inherits from the thread that starts it.
"""

import contextlib
import platform
import sys
import threading

import numpy as np
import pytest
from cases import QUANTIZED, low_precision_table, pack
from processes import SCRIPTS, run_python

import embag
from embag import SparseRows

if not (sys.platform == "linux" and platform.machine() == "x86_64"):
    pytest.skip("reads and writes a register of x86-64", allow_module_level=True)

try:
    from float_settings import SETTINGS, settings
except PermissionError:
    pytest.skip("the system allows no executable memory", allow_module_level=True)

# --- Calls with subnormals and inexact sums -------------------------------------------

ROWS, DIM, N = 40, 37, 300
IDS = np.random.default_rng(0).integers(0, ROWS, N)
OFFSETS = np.arange(0, N, 13)
BAGS = len(OFFSETS)


def random_rows(dtype, n_rows=ROWS, smallest=None):
    """Return rows; in every second column entries and their sums are subnormal in `dtype`."""
    values = np.random.default_rng(n_rows).standard_normal((n_rows, DIM))
    values[:, ::2] *= 16 * (smallest or float(np.finfo(dtype).smallest_subnormal))
    return values.astype(dtype)


def subnormal_scales():
    rng = np.random.default_rng(2)
    scale, bias = 1e-40 * rng.standard_normal((2, ROWS))
    return pack(rng.integers(0, 256, (ROWS, DIM)), scale, bias, 8, "fused")


FLOAT32, FLOAT64 = random_rows(np.float32), random_rows(np.float64)
GRADS = {dtype: random_rows(dtype, BAGS) for dtype in (np.float32, np.float64)}
WEIGHTS = {dtype: np.random.default_rng(1).standard_normal(N).astype(dtype) for dtype in GRADS}
STEP = SparseRows(np.arange(0, ROWS, 2), random_rows(np.float32, ROWS // 2), (ROWS, DIM))
LISTS = [bag.tolist() for bag in np.split(IDS, OFFSETS[1:])]
TABLES = {"float32": FLOAT32, "float64": FLOAT64, "8 bits": subnormal_scales()}
NARROW = {kind: low_precision_table(kind, ROWS, DIM) for kind in QUANTIZED}
NARROW |= {"subnormal scales": TABLES["8 bits"], "float16": random_rows(np.float16)}
with contextlib.suppress(ImportError):
    import ml_dtypes

    NARROW["bfloat16"] = random_rows(ml_dtypes.bfloat16, smallest=1e-40)
FEATURES = [
    embag.Feature(f"{mode} of {name}", name, mode)
    for name in TABLES
    for mode in ("sum", "mean", "sqrtn", "max", "min")
]


def pool(table, mode="sum", **options):
    return lambda n: embag.embedding_bag(IDS, table, OFFSETS, mode=mode, num_threads=n, **options)


def pool_ones(n):
    options = {"per_sample_weights": WEIGHTS[np.float32][:, None], "num_threads": n}
    return embag.embedding_bag(IDS[:, None], FLOAT32, mode="sum", **options)


def pool_lists(n):
    return embag.embedding_bag(LISTS, FLOAT32, mode="mean", num_threads=n)


def pool_renormed(norm_type):
    def call(n):
        table = FLOAT32.copy()
        options = {"max_norm": 0.3, "norm_type": norm_type, "num_threads": n}
        return embag.embedding_bag(IDS, table, OFFSETS, mode="sum", **options), table

    return call


def pool_features(n):
    collection = embag.EmbeddingBagCollection(TABLES, FEATURES)
    values = np.tile(IDS, len(FEATURES))
    starts = np.arange(len(FEATURES))[:, None] * N + OFFSETS
    ends = collection(values, np.append(starts, len(values)), num_threads=n)
    by_name = {feature.name: (IDS, OFFSETS) for feature in FEATURES}
    return ends, collection(by_name, num_threads=n)


def quantize(bits):
    return lambda n: embag.quantize(FLOAT32, bits, num_threads=n).packed


def gradients(table, mode="sum", **options):
    def call(n):
        arguments = GRADS[table.dtype.type], IDS, table, OFFSETS
        grads = embag.embedding_bag_backward(*arguments, mode=mode, num_threads=n, **options)
        weight = grads.weight.values if options.get("sparse") else grads.weight
        return weight, grads.per_sample_weights

    return call


def add_step(order):
    def call(n):
        table = np.array(FLOAT32, order=order)
        STEP.add_to(table, 0.1, num_threads=n)
        return table

    return call


CALLS = {
    "weighted sums of one row": pool_ones,
    "max and its rows": pool(FLOAT32, "max", return_max_indices=True),
    "sum, skipping": pool(FLOAT32[:30], invalid="skip"),
    "mean to float16": pool(FLOAT32, "mean", out_dtype=np.float16),
    "mean of lists": pool_lists,
    "collection": pool_features,
    "dequantize": lambda n: NARROW["subnormal scales"].dequantize(num_threads=n),
    "gradient by frequency": gradients(FLOAT32, scale_grad_by_freq=True),
    "a step": add_step("C"),
    "a step, Fortran order": add_step("F"),
}
for bits in (8, 4, 2):
    CALLS[f"quantize to {bits} bits"] = quantize(bits)
for norm_type in (1, 2, 3, np.inf):
    CALLS[f"max_norm by the {norm_type}-norm"] = pool_renormed(norm_type)
for name, table in NARROW.items():
    # Not "sum" and "max", whose products of a few bits are exact with any settings.
    CALLS[f"mean, {name}"] = pool(table, "mean")
    weights = {"per_sample_weights": WEIGHTS[np.float32]}
    CALLS[f"weighted sum, {name}"] = pool(table, **weights)
for mode in ("sum", "mean", "sqrtn", "max", "min"):
    for name, table in TABLES.items():
        CALLS[f"{mode}, {name}"] = pool(table, mode)
    for table in (FLOAT32, FLOAT64):
        CALLS[f"gradient of {mode}, {table.dtype}"] = gradients(table, mode)
for table in (FLOAT32, FLOAT64):
    weighted = {"per_sample_weights": WEIGHTS[table.dtype.type]}
    CALLS[f"weighted sum, {table.dtype}"] = pool(table, **weighted)
    CALLS[f"gradients of weighted sum, {table.dtype}"] = gradients(table, **weighted)
    for mode in ("sum", "mean"):
        CALLS[f"sparse gradient of {mode}, {table.dtype}"] = gradients(table, mode, sparse=True)


def contents(call, n_threads):
    """Return dtype, shape and bytes of each array that a call returns."""
    returned = call(n_threads)
    arrays = returned if isinstance(returned, tuple) else (returned,)
    return [(a.dtype, a.shape, a.tobytes()) for a in arrays if a is not None]


# --- Properties -----------------------------------------------------------------------


def test_the_settings_affect_numpy():
    numbers, tiny = np.arange(1, 50, dtype=np.float32), np.float32(1e-40)
    quotients = numbers / np.float32(49)
    for name, signs in {
        "flush": {0},
        "down": {-1, 0},
        "up": {0, 1},
        "toward zero": {-1, 0},
    }.items():
        with settings(name):
            others, doubled = numbers / np.float32(49), tiny + tiny
        assert set(np.sign(others - quotients)) == signs
        assert (doubled == 0) == (name == "flush")


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("call", CALLS)
def test_any_settings_give_the_same_bits(call, name, level, eager_threads):
    expected = contents(CALLS[call], 1)
    results = []

    def run():
        # The first call starts the workers of this thread, which inherit its settings.
        with settings(name):
            results.extend(contents(CALLS[call], n) for n in (3, 1))
        results.append(contents(CALLS[call], 3))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    with settings(name):  # with workers that started earlier
        results.extend(contents(CALLS[call], n) for n in (3, 1))
    assert len(results) == 5
    for result in results:
        assert result == expected


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_a_call_that_raises_leaves_the_settings(name, n_threads, eager_threads):
    bad = np.where(np.arange(N) == 150, ROWS, IDS)
    collection = embag.EmbeddingBagCollection(TABLES, FEATURES[:1])
    ends = np.append(OFFSETS, N)
    arguments = GRADS[np.float32], bad, FLOAT32, OFFSETS
    with settings(name):
        with pytest.raises(IndexError):
            embag.embedding_bag(bad, FLOAT32, OFFSETS, num_threads=n_threads)
        with pytest.raises(IndexError):
            collection(bad, ends, num_threads=n_threads)
        with pytest.raises(IndexError):
            embag.embedding_bag_backward(*arguments, mode="mean", num_threads=n_threads)
        with pytest.raises(ValueError, match="finite"):
            embag.quantize(np.full((ROWS, DIM), np.inf, np.float32), 8, num_threads=n_threads)


def test_unmasked_exceptions():
    assert run_python(SCRIPTS / "trap_invalid_operations.py").stdout == "[[nan]]\n"

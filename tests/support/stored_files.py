"""The files of tests/stored: what they hold, how they are made, and the results they must give.

Every number comes from integers by one exact or correctly rounded operation, so each version makes
the same ones. Expected results are computed by reference.py and by `expected_step`, in NumPy.

    <version>/expected.json        the arguments of all lookups, and their results
              tables/              a file for each way to store a table
              collection/          EmbeddingBagCollection.save
              training.safetensors save_checkpoint
              sharded/             embag.ray.ShardedCollection.save
"""

import json
import re
from functools import partial

import numpy as np
import pytest
import reference
from cases import dtype_of, pack
from optimizers import OPTIMIZERS, expected_step
from shards import cut_plan, local_shards

import embag
from embag import EmbeddingBagCollection, Feature, QuantizedTable, RemappedTable, SparseRows, optim
from embag.ray import ShardedCollection

MODES = {"sum": ("sum", False), "weighted mean": ("mean", True), "max": ("max", False)}
BAGS = {"input": [1, 4, 0, 5, 4, 2, 1], "offsets": [0, 4]}
WEIGHTS = [0.3, 1.7, -0.6, 2.2, 0.1, 0.7, 1.9]


def numbers(*shape, seed=0):
    """Return float32 numbers of about -1.4 to 1.4."""
    places = np.arange(np.prod(shape)) * 7919 + seed * 104729
    return ((places % 2003 - 1001) / 700).astype(np.float32).reshape(shape)


# --- Tables -------------------------------------------------------------------


def make_tables():
    """Return the tables by the names of their files."""
    floats = numbers(6, 5)
    integers = (np.arange(30).reshape(6, 5) * 37 % 256).astype(np.uint8)
    scales = np.abs(numbers(6, seed=1)) + np.float32(0.01)
    low = {
        name: floats.astype(dtype_of(name))
        for name in ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    }
    int8 = integers.view(np.int8)
    return {
        "float32.npy": floats,
        "float64.safetensors": floats.astype(np.float64) / 3,
        "float16.npy": low["float16"],
        "bfloat16.npy": low["bfloat16"],
        "bfloat16.safetensors": low["bfloat16"],
        "float8_e4m3fn.npy": low["float8_e4m3fn"],
        "float8_e5m2.safetensors": low["float8_e5m2"],
        "int8.npy": int8,
        "uint8.safetensors": integers,
        "8-bits.npy": embag.quantize(floats),
        "4-bits.safetensors": embag.quantize(floats, 4),
        "2-bits.npy": embag.quantize(floats, 2),
        "4-bits-tbe.npy": pack(integers % 16, scales, numbers(6, seed=2), 4, "tbe", n_extra=3),
        "2-bits-tbe.safetensors": pack(integers % 4, scales, numbers(6, seed=2), 2, "tbe"),
        "int8-scales.safetensors": QuantizedTable.from_int8(int8, scales),
        "float8-scale.safetensors": QuantizedTable.from_float8(low["float8_e4m3fn"], scales[0]),
        "remapped.safetensors": RemappedTable(
            floats, np.array([5, -1, 2, 2], np.int32), [0.5, 1, 1.5, 0.7], first_id=1
        ),
        "remapped-8-bits.safetensors": RemappedTable(
            embag.quantize(floats), np.array([3, 0, -1, 1, 4, 5])
        ),
    }


def expected_lookup(table, mode, **options):
    """Return the result of a lookup by definition."""
    ids, offsets = map(np.array, BAGS.values())
    options |= {"mode": mode, "invalid": "skip"}
    is_quantized = type(table) is QuantizedTable
    if type(table) is RemappedTable or (is_quantized and table.scales is not None):
        out, _ = reference.mapped_embedding_bag(ids, table, offsets, **options)
    elif is_quantized:
        out, _ = reference.quantized_embedding_bag(ids, table, offsets, **options)
    else:
        sums = np.float64 if table.dtype == np.float64 else np.float32
        out, _ = reference.embedding_bag(ids, table.astype(sums), offsets, **options)
    return out


def as_weights(weights, table):
    """Return weights in the dtype of the table's sums."""
    is_double = getattr(table, "dtype", None) == np.float64
    return np.array(weights, np.float64 if is_double else np.float32)


def record_tables(folder):
    folder.mkdir()
    expected = {}
    for file, table in make_tables().items():
        embag.save_table(folder / file, table)
        expected[file] = {
            name: as_json(
                expected_lookup(
                    table,
                    mode,
                    per_sample_weights=as_weights(WEIGHTS, table) if is_weighted else None,
                )
            )
            for name, (mode, is_weighted) in MODES.items()
        }
    return expected


# --- A collection -------------------------------------------------------------


def record_collection(folder):
    tables = make_tables()
    used = {
        "floats": tables["float32.npy"],
        "bytes": tables["8-bits.npy"],
        "remapped": tables["remapped.safetensors"],
    }
    features = [
        Feature("plain", "floats", "sum"),
        Feature("padded", "floats", "mean", padding_idx=4, normalize=True),
        Feature("of bytes", "bytes", "sqrtn", default_idx=2),
        Feature("of a map", "remapped", "max", invalid="skip"),
        Feature("rows", "floats", "none", invalid="skip"),
    ]
    EmbeddingBagCollection(used, features).save(folder)
    expected = {}
    for feature in features:
        options = feature._asdict()
        name, table = options.pop("name"), used[options.pop("table")]
        del options["invalid"]
        if feature.mode != "none":
            expected[name] = as_json(expected_lookup(table, **options))
        else:
            expected[name] = as_json(table[BAGS["input"]])
    return expected


# --- Training -----------------------------------------------------------------

GRADIENTS = [([0, 2], numbers(2, 2, seed=3)), ([2, 3], numbers(2, 2, seed=4))]
NEXT = [1, 2, 3], numbers(3, 2, seed=5)
FROZEN = 3
KINDS = [name for name in OPTIMIZERS if name != "row wise"]  # of it, two with weight decay


def as_gradient(rows, values):
    return SparseRows(np.array(rows), np.array(values, np.float32), (4, 2))


def record_checkpoint(path):
    items, expected = {}, {}
    for seed, name in enumerate(KINDS):
        frozen = [FROZEN] if name == "adagrad" else None
        items[name] = OPTIMIZERS[name](numbers(4, 2, seed=seed), frozen=frozen)
        start, states = items[name].table.copy(), items[name].states
        states = {state: array.copy() for state, array in states.items()}
        results = []
        for t, (rows, values) in enumerate([*GRADIENTS, NEXT], start=1):
            for r, g in zip(rows, values, strict=True):
                if frozen is None or r != FROZEN:
                    expected_step(name, start[r], [array[r] for array in states.values()], g, t)
            results.append(as_json(start))
            if t == len(GRADIENTS):
                saved = {state: as_json(array) for state, array in states.items()}
        for gradient in GRADIENTS:
            items[name].step(as_gradient(*gradient))
        kind, options = type(items[name]).__name__, items[name]._options()
        expected[name] = {
            "class": kind, "options": options, "n_steps": len(GRADIENTS),
            "table": results[-2], "states": saved, "table after one more step": results[-1],
        }  # fmt: skip
    arrays = {
        "bias": numbers(3, seed=9).astype(np.float64),
        "mask": np.array([True, False]),
        "counts": np.array([[1, 2**40]]),
    }
    metadata = {"epoch": 3, "names": ["ä", None]}
    embag.save_checkpoint(path, {**items, **arrays}, metadata=metadata)
    return {
        "metadata": metadata,
        "arrays": {
            name: {"dtype": array.dtype.name, "values": array.tolist()}
            for name, array in arrays.items()
        },
        "optimizers": expected,
        "next gradient": {"rows": NEXT[0], "values": as_json(NEXT[1])},
    }


def make_sharded():
    """Return a collection of shards in this process, of one table that is cut in two."""
    tables = {"items": numbers(4, 2)}
    plan = cut_plan(tables, 2, n_shards=2)
    features = [Feature("bought", "items")]
    return ShardedCollection(tables, features, plan=plan, memory="copy", exact=True)


def record_sharded(folder):
    folder.mkdir()
    expected, states = numbers(4, 2), np.zeros((4, 2), np.float32)
    adagrad = partial(optim.Adagrad, lr=0.25, lr_decay=0.5, eps=1e-3)
    with pytest.MonkeyPatch.context() as patch, local_shards(patch), make_sharded() as sharded:
        gradient = numbers(4, 2, seed=6)
        sharded.update(gradient, {"bought": [[0], [1], [2], [3]]}, optimizers={"items": adagrad})
        sharded.save(folder)
    for r in range(4):
        expected_step("adagrad", expected[r], [states[r]], gradient[r], 1)
    return {"table": as_json(expected), "sum": as_json(states)}


# --- All of them --------------------------------------------------------------


def record(folder):
    """Write all files of this version to an empty folder."""
    ids, offsets = BAGS.values()
    expected = {
        "call": {"input": ids, "offsets": offsets, "per_sample_weights": WEIGHTS},
        "tables": record_tables(folder / "tables"),
        "collection": record_collection(folder / "collection"),
        "training": record_checkpoint(folder / "training.safetensors"),
        "sharded": record_sharded(folder / "sharded"),
    }
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    # A list of numbers is one line.
    text = re.sub(r"\[\s+([^\[\]{}\"]*?)\s+\]", lambda list: f"[{' '.join(list[1].split())}]", text)
    (folder / "expected.json").write_text(f"{text}\n", "utf-8")


def as_json(array):
    """Return floats as the shortest numbers that have the same bits when they are read."""
    assert np.isfinite(array).all()
    result = [float(str(x)) for x in array.ravel()]
    assert np.array(result, array.dtype).tobytes() == array.tobytes()
    return np.reshape(np.array(result), array.shape).tolist()

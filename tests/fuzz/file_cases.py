"""Files of tables: saved, loaded, and loaded after a change of their bytes."""

import functools
import json
import os
import tempfile
from pathlib import Path

import numpy as np

import embag

from .checked_call import Case
from .lookup_cases import FLOATS, MOST, NARROW, PACKED, plain, remapped, rows_of, tables
from .table_cases import check_quantized
from .values import EDGES

RAISES = (TypeError, ValueError, OSError, ImportError)


@functools.cache
def folder():
    """Return a folder, which the parent process removes."""
    return Path(tempfile.mkdtemp())


def check_equal(a, b):
    """Check that two tables hold the same bytes."""
    assert type(a) in (embag.RemappedTable, embag.QuantizedTable, np.ndarray)
    if isinstance(a, embag.RemappedTable):
        assert a.first_id == b.first_id
        np.testing.assert_array_equal(a.index_map, b.index_map)
        np.testing.assert_array_equal(a.scales, b.scales)
        a, b = a.table, b.table
    if isinstance(a, embag.QuantizedTable):
        assert (a.bits, a.dim, a.layout) == (b.bits, b.dim, b.layout)
        np.testing.assert_array_equal(a.scales, b.scales)
        a, b = a.packed, b.packed
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.tobytes() == np.ascontiguousarray(plain(b)).tobytes()


def save_cases(rng):
    table = tables(rng)
    suffix = rng.choice([".npy", ".safetensors", ".NPY"])
    if rng.random() < 0.1:
        table = remapped(rng, table)
    if isinstance(table, embag.RemappedTable) or getattr(table, "scales", None) is not None:
        suffix = ".safetensors"
    path = folder() / f"saved{suffix}"
    call = {"path": rng.choice([path, str(path)]), "table": table}
    if suffix == ".safetensors" and rng.random() < 0.5:
        call["name"] = rng.choice(["weight", "", "a.b", "ü", "x" * 300, "embag.x"])
    is_float = isinstance(table, np.ndarray) and table.itemsize > 1
    quantizes = is_float and rng.random() < 0.4
    if quantizes:
        with np.errstate(all="ignore"):
            values = plain(table).astype(np.float64)
            quantizes = bool((np.abs(values) < 1e4).all())
    if quantizes:
        call["bits"] = rng.choice([8, 4, 2])
        if rng.random() < 0.5:
            call["progress"] = lambda *_: None

    def save(**given):
        try:
            embag.save_table(**given)
        finally:
            left = [name for name in os.listdir(folder()) if name.endswith(".tmp")]
            assert not left, left

    def check(_result, given):
        table, name = given["table"], given.get("name")
        loaded = embag.load_table(given["path"], name=name)
        if given.get("bits") is not None:
            table = embag.quantize(table, given["bits"])
        check_equal(loaded, table)
        copied = embag.load_table(given["path"], "copy", name=name)
        check_equal(copied, table)

    return Case("save_table", save, call, check, RAISES)


@functools.cache
def whole_files():
    """Return the bytes of sound files: (suffix, bytes, the table)."""
    rng = np.random.default_rng(0)
    files = []
    for kind in [*dict.fromkeys(FLOATS), *NARROW, *PACKED]:
        for shape in ((5, 6), (0, 3), (2, 0)):
            if kind in PACKED:
                layout, bits = kind
                n_bytes = embag.quantized.row_bytes(bits, shape[1], layout)
                packed = rng.integers(0, 256, (shape[0], n_bytes), np.uint8)
                table = embag.QuantizedTable.from_packed(packed, bits, shape[1], layout)
            else:
                table = rng.standard_normal(shape).astype(kind)
            for suffix in (".npy", ".safetensors"):
                path = folder() / f"whole{suffix}"
                embag.save_table(path, table)
                files.append((suffix, path.read_bytes(), table))
    return files


def load_cases(rng):
    suffix, data, table = rng.choice(whole_files())
    change = rng.choice(["", "", "flip", "cut", "more", "number", "word", "header", "name"])
    path = folder() / f"loaded{suffix}"
    changed = bytes(changed_bytes(rng, suffix, data, change))
    path.unlink(missing_ok=True)  # an existing map keeps the old file
    path.write_bytes(changed)
    call = {"path": str(path), "memory": rng.choice(["map", "copy"])}
    call["num_threads"] = rng.choice([None, 1, 8])
    call["verify"] = suffix == ".safetensors" and rng.random() < 0.3

    def check(result, given):
        assert changed == data or given["verify"] is not True  # no damage is overlooked
        if changed == data and str(given["path"]) == str(path):
            check_equal(result, table)
        elif isinstance(result, embag.QuantizedTable):
            check_quantized(result)
        assert rows_of(result) > MOST or embag.embedding_bag(
            np.arange(rows_of(result)).reshape(-1, 1), result
        ).shape == tuple(result.shape)

    return Case("load_table", embag.load_table, call, check, RAISES, sound=changed == data)


def checkpoint_items(rng):
    """Return items of a checkpoint: optimizers and arrays of any dtype of the format."""
    kinds = [
        *(embag.optim.SGD, embag.optim.Adagrad, embag.optim.RowWiseAdagrad),
        *(embag.optim.Adam, embag.optim.FTRL),
    ]
    items = {}
    for name in rng.sample(["item", "user", "", "a.b", "ü", "x" * 300], rng.randrange(4)):
        if rng.random() < 0.3:
            dtype = rng.choice(["?", "i4", "u8", "f2", "f8", *FLOATS])
            items[name] = np.ones(rng.choice([(), (0,), (3,), (2, 3), (2, 0, 3)]), dtype)
            continue
        table = np.ones(rng.choice([(5, 3), (0, 3), (2, 0)]), rng.choice(["f2", "f4", "f8"]))
        frozen = rng.choice([None, [], np.arange(len(table)) % 2 == 0])
        items[name] = rng.choice(kinds)(table, lr=rng.choice([0.5, 1]), frozen=frozen)
    return items


def check_items(found, items):
    """Check that a loaded checkpoint holds these items."""
    assert list(found) == list(items)
    for name, item in items.items():
        if isinstance(item, np.ndarray):
            check_equal(found[name], item)
            continue
        assert type(found[name]) is type(item)
        check_equal(found[name].table, item.table)
        assert found[name].n_steps == item.n_steps
        assert found[name].states.keys() == item.states.keys()
        for state, array in item.states.items():
            check_equal(found[name].states[state], array)


def save_checkpoint_cases(rng):
    path = folder() / "saved.safetensors"
    call = {"path": rng.choice([path, str(path)]), "items": checkpoint_items(rng)}
    if rng.random() < 0.5:
        call["metadata"] = rng.choice([None, {}, {"step": 3, "a": [1.5, None, {"b": "c"}]}])

    def save(**given):
        try:
            embag.save_checkpoint(**given)
        finally:
            left = [name for name in os.listdir(folder()) if name.endswith(".tmp")]
            assert not left, left

    def check(_result, given):
        items, metadata = embag.load_checkpoint(given["path"], return_metadata=True)
        check_items(items, given["items"])
        assert metadata == (given.get("metadata") or {})

    return Case("save_checkpoint", save, call, check, RAISES)


def load_checkpoint_cases(rng):
    path = folder() / "loaded.safetensors"
    path.unlink(missing_ok=True)
    items = checkpoint_items(rng)
    embag.save_checkpoint(path, items, metadata={"step": 3})
    data = path.read_bytes()
    change = rng.choice(["", "", "flip", "cut", "more", "number", "word", "header"])
    changed = bytes(changed_bytes(rng, ".safetensors", data, change, most=5000))
    path.write_bytes(changed)
    call = {"path": str(path), "return_metadata": rng.choice([True, False])}
    call["verify"] = rng.random() < 0.3

    def check(result, given):
        assert changed == data or given["verify"] is not True
        found, metadata = result if given.get("return_metadata") else (result, {"step": 3})
        if changed == data:
            check_items(found, items)
            assert metadata == {"step": 3}
        for item in found.values():
            if isinstance(item, embag.optim.Optimizer) and item.table.size < MOST:
                item.step(np.ones(item.table.shape, np.result_type(item.table, np.float32)))

    return Case(
        "load_checkpoint", embag.load_checkpoint, call, check, RAISES, sound=changed == data
    )


def changed_bytes(rng, suffix, data, change, most=300):
    """Return the bytes of a file after a change, in most cases of the first bytes."""
    data = bytearray(data)
    n_head = len(data) if suffix == ".npy" else 8 + int.from_bytes(data[:8], "little")
    n_head = min(n_head, most)
    if change == "flip":
        for _ in range(rng.choice([1, 1, 2, 20])):
            data[rng.randrange(n_head)] = rng.choice([0, 1, 32, 48, 57, 123, 128, 255])
    elif change == "cut":
        del data[rng.randrange(len(data) + 1) :]
    elif change == "more":
        at = rng.randrange(len(data) + 1)
        data[at:at] = bytes(rng.choices(range(256), k=rng.choice([1, 8, 64])))
    elif change in ("number", "word"):
        text = bytes(data[:n_head])
        wanted = b"0123456789" if change == "number" else b"\"'(){}[],:"
        places = [k for k, byte in enumerate(text) if byte in wanted and k > 9]
        if places:
            k = rng.choice(places)
            words = [
                str(rng.choice(EDGES[:-1])).encode(),
                b"",
                b"-",
                b"1e5",
                b"null",
                b"{}",
                b"0x1",
            ]
            stop = k + rng.choice([0, 1, 1, 2])
            data[k:stop] = rng.choice(words)
            if rng.random() < 0.7:
                data = _with_length(suffix, data)
    elif change == "header":
        data = hostile_header(rng, suffix)
    elif change == "name":
        at = data.find(b"weight")
        data[max(at, 8) : max(at, 8) + 3] = rng.choice([b"\\u0000", b"\xff\xfe", b'","', b"abc"])
    return data


def _with_length(suffix, data):
    """Correct the length of the header, if it can be determined."""
    if suffix == ".safetensors":
        stop = data.find(b"}}") + 2
        if stop > 8:
            while stop < len(data) and data[stop] == ord(" "):
                stop += 1
            data[:8] = (stop - 8).to_bytes(8, "little")
    else:
        stop = data.find(b"\n")
        if stop >= 10:
            data[8:10] = (stop + 1 - 10).to_bytes(2, "little")
    return data


def hostile_header(rng, suffix):
    """Return a file whose header has the right form and any contents."""
    edges = [0, 1, 2, 3, 8, *(edge for edge in EDGES[:-1])]
    body = bytes(rng.choice([0, 0, 8, 24, 96, 120]))
    if suffix == ".npy":
        shape = tuple(rng.choice(edges) for _ in range(rng.choice([1, 2, 2, 2, 3])))
        fields = [[("q8x4", "u1", (4,)), ("scale", "<f4"), ("bias", "<f4")], [("bfloat16", "<u2")]]
        fields += [
            [("scale", "<f2"), ("bias", "<f2"), ("q4x4", "u1", (2,))],
            [("q8x0", "u1", (0,))],
        ]
        descr = rng.choice(["<f4", "<f2", "<f8", ">f4", "|O", "|V2", "<i4", "", "f4,f4", *fields])
        text = repr({"descr": descr, "fortran_order": rng.choice([False, False, True, 3]),
                     "shape": shape})  # fmt: skip
        text = text.encode() + b" " * rng.choice([0, 3, 20]) + b"\n"
        version = rng.choice([(1, 0), (1, 0), (2, 0), (3, 0), (9, 9)])
        length = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
        return bytearray(b"\x93NUMPY" + bytes(version) + length + text + body)
    end = rng.choice([len(body), *edges])
    tensor = {
        "dtype": rng.choice(["F32", "F16", "BF16", "F64", "U8", "I8", 3, None]),
        "shape": [rng.choice(edges) for _ in range(rng.choice([0, 1, 2, 2, 2, 3]))],
        "data_offsets": [rng.choice([0, 0, 0, *edges]), end],
    }
    if rng.random() < 0.1:
        tensor.pop(rng.choice(list(tensor)))
    header = {"weight": tensor}
    if rng.random() < 0.3:
        header["other"] = rng.choice([tensor, 3, [], {}])
    if rng.random() < 0.5:
        packing = {"bits": rng.choice([8, 4, 2, "8", None, 2**70]), "dim": rng.choice(edges)}
        packing["layout"] = rng.choice(["fused", "tbe", 3])
        text = rng.choice([json.dumps(packing), json.dumps(packing), "", "{", "[" * 2000, "3"])
        header["__metadata__"] = {"embag.weight": text}
    text = json.dumps(header).encode()
    length = rng.choice([len(text), len(text), len(text), 2**62, 0, len(text) + 5])
    return bytearray(length.to_bytes(8, "little") + text + body)

"""`save_table` and `load_table`: round trips, maps, copies, replacement and malformed files."""

import errno
import io
import json
import mmap
import os
import pickle
import re
import stat
import sys
import threading
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from processes import SCRIPTS, run_python

import embag
from embag import tables
from embag._files import headers, replacement

ml_dtypes = pytest.importorskip("ml_dtypes")

safetensors = pytest.importorskip("safetensors")
safetensors_numpy = pytest.importorskip("safetensors.numpy")

SUFFIXES = [".npy", ".safetensors"]
MEMORIES = ["map", "copy"]


def floats(dtype, shape=(7, 5)):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def quantized(bits, dim, layout, n_rows=7, padding=0):
    factors = 8 if bits == 8 and layout == "fused" else 4
    shape = (n_rows, (dim * bits + 7) // 8 + factors + padding)
    rows = np.random.default_rng(1).integers(0, 256, shape, np.uint8)
    return embag.QuantizedTable.from_packed(rows, bits, dim, layout)


TABLES = {
    "float16": floats(np.float16),
    "bfloat16": floats(ml_dtypes.bfloat16),
    "float32": floats(np.float32),
    "float64": floats(np.float64),
    "no_rows": floats(np.float32, (0, 5)),
    "no_columns": floats(np.float32, (4, 0)),
    "nothing": floats(np.float64, (0, 0)),
    "one_entry": floats(np.float16, (1, 1)),
    "bfloat16_no_rows": floats(ml_dtypes.bfloat16, (0, 3)),
    "q8": quantized(8, 5, "fused"),
    "q4": quantized(4, 5, "fused"),
    "q2": quantized(2, 1, "fused"),
    "q8_tbe": quantized(8, 5, "tbe"),
    "q4_tbe_padded": quantized(4, 6, "tbe", padding=9),
    "q8_no_rows": quantized(8, 5, "fused", n_rows=0),
    "q8_no_columns": quantized(8, 0, "fused"),
    "q2_tbe_one_byte_of_padding": quantized(2, 3, "tbe", padding=1),
}
SMALL = ["float32", "bfloat16", "q8", "q8_tbe", "q4_tbe_padded"]


def bytes_of(table):
    """Read every byte that a lookup may read."""
    return (table.packed if isinstance(table, embag.QuantizedTable) else table).tobytes()


def assert_same(table, expected):
    assert type(table) is type(expected)
    assert table.shape == expected.shape
    if isinstance(expected, embag.QuantizedTable):
        assert (table.bits, table.dim, table.layout) == (
            expected.bits,
            expected.dim,
            expected.layout,
        )
        assert table.packed.shape == expected.packed.shape
        assert type(table.packed) is np.ndarray
    else:
        assert table.dtype == expected.dtype
        assert table.flags.aligned
        assert table.flags.c_contiguous
    assert bytes_of(table) == bytes_of(expected)


# --- Round trips ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", TABLES)
def test_a_saved_table_is_loaded(tmp_path, suffix, memory, name):
    path = tmp_path / f"table{suffix}"
    embag.save_table(path, TABLES[name])
    assert_same(embag.load_table(path, memory), TABLES[name])
    assert_same(embag.load_table(str(path), memory=memory, num_threads=2), TABLES[name])
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", TABLES)
def test_rows_start_on_a_cache_line_of_the_file(tmp_path, suffix, name):
    path = tmp_path / f"table{suffix}"
    embag.save_table(path, TABLES[name])
    assert (path.stat().st_size - TABLES[name].nbytes) % 64 == 0


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_lookups_equal_those_of_the_table_in_memory(tmp_path, suffix, memory):
    path = tmp_path / f"table{suffix}"
    table = floats(np.float32, (500, 33))
    ids = np.random.default_rng(2).integers(0, 500, (40, 9))
    embag.save_table(path, table)
    np.testing.assert_array_equal(
        embag.embedding_bag(ids, embag.load_table(path, memory)), embag.embedding_bag(ids, table)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda table: np.repeat(table, 2, axis=0)[::2],
        lambda table: np.repeat(table, 2, axis=1)[:, ::2],
        lambda table: table[::-1].copy()[::-1],
        lambda table: np.broadcast_to(table[:1], table.shape),
        np.ma.masked_array,
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_any_layout_is_saved_in_c_order(tmp_path, monkeypatch, suffix, layout, dtype):
    monkeypatch.setattr(tables, "_BLOCK", 100)
    table = layout(floats(dtype, (57, 5)))
    embag.save_table(tmp_path / f"t{suffix}", table)
    assert_same(embag.load_table(tmp_path / f"t{suffix}"), np.array(table))


def test_packed_rows_with_gaps_are_saved(tmp_path):
    rows = np.repeat(quantized(8, 5, "fused").packed, 2, axis=0)[::2]
    table = embag.QuantizedTable.from_packed(rows, 8, 5)
    for suffix in SUFFIXES:
        embag.save_table(tmp_path / f"t{suffix}", table)
        assert_same(embag.load_table(tmp_path / f"t{suffix}"), quantized(8, 5, "fused"))


def test_a_loaded_map_can_be_saved_over_its_own_file(tmp_path):
    path = tmp_path / "t.npy"
    embag.save_table(path, TABLES["float32"])
    embag.save_table(path, embag.load_table(path))
    assert_same(embag.load_table(path), TABLES["float32"])


# --- Files of other libraries ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("memory", MEMORIES)
def test_files_of_numpy(tmp_path, dtype, memory):
    path = tmp_path / "t.npy"
    np.save(path, floats(dtype))
    assert_same(embag.load_table(path, memory), floats(dtype))
    with open(path, "wb") as file:
        np.lib.format.write_array(file, floats(dtype), version=(2, 0))
    assert_same(embag.load_table(path, memory), floats(dtype))
    embag.save_table(path, floats(dtype))
    np.testing.assert_array_equal(np.load(path), floats(dtype))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("memory", MEMORIES)
def test_files_of_safetensors(tmp_path, dtype, memory):
    path = tmp_path / "t.safetensors"
    others = {"b.weight": floats(np.float32, (3, 3)), "ids": np.arange(3), "a": floats(dtype, 3)}
    safetensors_numpy.save_file({"a.weight": floats(dtype), **others}, path)
    assert_same(embag.load_table(path, memory, name="a.weight"), floats(dtype))
    with pytest.raises(ValueError, match=r"name must be one of the file's tensors \('.*\), got No"):
        embag.load_table(path, memory)
    safetensors_numpy.save_file({"größe": floats(dtype)}, path, {"format": "np"})
    assert_same(embag.load_table(path, memory), floats(dtype))


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "q8", "q4_tbe_padded"])
def test_safetensors_reads_our_files(tmp_path, name):
    path = tmp_path / "t.safetensors"
    table = TABLES[name]
    array = table.packed if isinstance(table, embag.QuantizedTable) else table
    embag.save_table(path, table)
    np.testing.assert_array_equal(safetensors_numpy.load_file(path)["weight"], array)
    embag.save_table(path, table, name='a "größe"')
    with safetensors.safe_open(path, framework="np") as file:
        assert list(file.keys()) == ['a "größe"']
        np.testing.assert_array_equal(file.get_tensor('a "größe"'), array)
    assert_same(embag.load_table(path, name='a "größe"'), table)


def test_bfloat16_of_safetensors_and_torch(tmp_path):
    path = tmp_path / "t.safetensors"
    embag.save_table(path, TABLES["bfloat16"])
    with safetensors.safe_open(path, framework="np") as file:
        assert file.get_slice("weight").get_dtype() == "BF16"
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    tensor = torch.tensor(TABLES["bfloat16"].astype(np.float32)).bfloat16()
    assert torch.equal(load_file(path)["weight"], tensor)
    save_file({"table": tensor}, path)
    assert_same(embag.load_table(path), TABLES["bfloat16"])


def test_several_quantized_tables_in_one_file(tmp_path):
    one, two = quantized(8, 5, "fused"), quantized(4, 6, "tbe", padding=9)
    metadata = {}
    for name, table in {"one": one, "two": two}.items():
        embag.save_table(tmp_path / "t.safetensors", table, name=name)
        with safetensors.safe_open(tmp_path / "t.safetensors", framework="np") as file:
            metadata |= file.metadata()
    path = tmp_path / "both.safetensors"
    safetensors_numpy.save_file({"one": one.packed, "two": two.packed}, path, metadata)
    assert_same(embag.load_table(path, name="one"), one)
    assert_same(embag.load_table(path, name="two"), two)


def test_records_of_a_quantized_npy_describe_themselves(tmp_path):
    table = quantized(8, 5, "fused")
    table.packed[:, -8:] = np.tile(np.array([0.5, -1], np.float32).view(np.uint8), (7, 1))
    embag.save_table(tmp_path / "t.npy", table)
    records = np.load(tmp_path / "t.npy")
    assert records.shape == (7,)
    assert records.dtype.names == ("q8x5", "scale", "bias")
    assert (records["scale"] == 0.5).all()
    assert (records["bias"] == -1).all()
    np.testing.assert_array_equal(records["q8x5"], table.packed[:, :5])
    embag.save_table(tmp_path / "t.npy", quantized(4, 6, "tbe", padding=9))
    dtype = np.load(tmp_path / "t.npy").dtype
    assert dtype.names == ("scale", "bias", "q4x6", "padding")
    embag.save_table(tmp_path / "t.npy", TABLES["bfloat16"])
    bits = np.load(tmp_path / "t.npy")["bfloat16"]
    np.testing.assert_array_equal(bits.view(ml_dtypes.bfloat16), TABLES["bfloat16"])


def test_tables_of_bfloat16_without_ml_dtypes(tmp_path, monkeypatch):
    for suffix in SUFFIXES:
        embag.save_table(tmp_path / f"t{suffix}", TABLES["bfloat16"])
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    for suffix in SUFFIXES:
        with pytest.raises(ImportError, match=r"need ml_dtypes: pip install 'embag-cpu\[bfloat16"):
            embag.load_table(tmp_path / f"t{suffix}")


# --- Maps -----------------------------------------------------------------------------


def mapping_of(array):
    """Return the first line and the flags of an array's mapping."""
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        pytest.skip("needs /proc")
    for block in re.split(r"(?m)^(?=[0-9a-f]+-[0-9a-f]+ )", smaps.read_text()):
        match = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", block)
        if match and int(match[1], 16) <= array.ctypes.data < int(match[2], 16):
            return block.splitlines()[0], re.search("VmFlags:(.*)", block)[1].split()
    raise AssertionError("no mapping has the array")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_maps_are_shared_and_read_only(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    for table in (TABLES["float32"], TABLES["q8"]):
        embag.save_table(path, table)
        loaded = embag.load_table(path)
        array = loaded.packed if isinstance(loaded, embag.QuantizedTable) else loaded
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        with pytest.raises(ValueError, match="read-only"):
            embag.embedding_bag([0], array.view(np.ndarray)[:, :4].view("f4"), [0], max_norm=1.0)
        line, _ = mapping_of(array)
        assert " r--s " in line
        assert line.endswith(path.name)


def test_other_processes_read_the_same_pages(tmp_path):
    path = tmp_path / "t.npy"
    embag.save_table(path, floats(np.float32))
    table = embag.load_table(path)
    program = "import embag, sys; print(embag.load_table(sys.argv[1]).tobytes().hex())"
    assert run_python("-c", program, path).stdout.strip() == table.tobytes().hex()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_map_outlives_its_file(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    embag.save_table(path, floats(np.float32, (3000, 64)))
    table = embag.load_table(path)
    row = table[5:6]
    embag.save_table(path, np.zeros((1, 1), np.float32))
    np.testing.assert_array_equal(table, floats(np.float32, (3000, 64)))
    path.unlink()
    del table
    np.testing.assert_array_equal(row[0], floats(np.float32, (3000, 64))[5])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(row)), row)


def test_no_descriptor_or_mapping_leaks(tmp_path):
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    path = tmp_path / "table-of-this-test.npy"
    embag.save_table(path, floats(np.float32))
    bad = tmp_path / "bad-table-of-this-test.npy"
    bad.write_bytes(path.read_bytes()[:-1])
    for memory in MEMORIES:
        table = embag.load_table(path, memory)
        del table
        with pytest.raises(ValueError, match="bad-table"):
            embag.load_table(bad, memory)
    assert "table-of-this-test" not in Path("/proc/self/maps").read_text()
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not any("table-of-this-test" in link for link in links)


@pytest.mark.parametrize(("limit", "flag"), [(0, "rr"), (1 << 60, "hg")])
def test_the_advice_about_a_map(tmp_path, monkeypatch, limit, flag):
    monkeypatch.setattr(tables, "_memory_limit", lambda: limit)
    path = tmp_path / "t.npy"
    embag.save_table(path, floats(np.float32, (3000, 64)))
    flags = mapping_of(embag.load_table(path))[1]
    if flag == "hg" and not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no huge pages")
    assert flag in flags


def test_the_memory_limit_is_a_number():
    assert 1 << 20 < tables._memory_limit() < float("inf")


def test_a_map_that_fails_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "t.npy"
    embag.save_table(path, floats(np.float32))

    def fail(*_, **__):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        embag.load_table(path)
    assert caught.value.errno == errno.ENOMEM
    assert caught.value.filename == str(path)
    assert str(path) in str(caught.value)


def test_a_table_larger_than_memory(tmp_path):
    """The file has 64 GiB; the disk stores only the rows that are written."""
    path = tmp_path / "t.npy"
    n_rows, dim = 1 << 28, 64
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (n_rows, dim)}
    )
    rows = [0, 1, 12345, n_rows // 2, n_rows - 1]
    try:
        with open(path, "wb") as file:
            file.write(head.getvalue())
            file.truncate(len(head.getvalue()) + n_rows * dim * 4)
            for row in rows:
                file.seek(len(head.getvalue()) + row * dim * 4)
                file.write(np.full(dim, row % 1000 + 1, np.float32))
    except OSError as error:
        if error.errno not in (errno.EFBIG, errno.ENOSPC, errno.EINVAL):
            raise
        pytest.skip("this file system has no sparse files of 64 GiB")
    if path.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no sparse files")
    table = embag.load_table(path)
    assert table.shape == (n_rows, dim)
    result = embag.embedding_bag([*rows, 77], table, range(6), mode="sum")
    assert result[:, 0].tolist() == [*(row % 1000 + 1 for row in rows), 0]
    with pytest.raises(IndexError, match=f"out of range for a table of {n_rows} rows"):
        embag.embedding_bag([n_rows], table, [0])
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    with pytest.raises(ValueError, match="file must have 68719476736 bytes of data"):
        embag.load_table(path)


# --- Copies ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("n_threads", [1, 3])
def test_copies_are_read_in_parts(tmp_path, monkeypatch, eager_threads, suffix, n_threads):
    monkeypatch.setattr(tables, "_BYTES_PER_THREAD", 1 << 20)
    table = floats(np.float32, (60_001, 19))
    embag.save_table(tmp_path / f"t{suffix}", table)
    started = []
    real = threading.Thread.start
    monkeypatch.setattr(
        threading.Thread, "start", lambda self: (started.append(self), real(self))[1]
    )
    copy = embag.load_table(tmp_path / f"t{suffix}", "copy", num_threads=n_threads)
    assert_same(copy, table)
    assert copy.flags.writeable
    assert copy.ctypes.data % (2 << 20) == 0
    assert bool(started) == (n_threads > 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_saving_and_loading_hold_no_second_copy(tmp_path, suffix):
    path = tmp_path / f"t{suffix}"
    table = np.asfortranarray(np.ones((100_000, 64), np.float32))  # 25 MB
    peaks = []
    for call in (lambda: embag.save_table(path, table), lambda: embag.load_table(path, "copy")):
        tracemalloc.start()
        call()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] < 1.2 * tables._BLOCK
    assert peaks[1] < 1 << 20


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_file_that_is_truncated_during_a_read(tmp_path, monkeypatch, eager_threads, n_threads):
    path = tmp_path / "t.npy"
    monkeypatch.setattr(tables, "_BYTES_PER_THREAD", 1 << 20)
    embag.save_table(path, floats(np.float32, (60_001, 19)))

    def truncate_and_allocate(*args):
        os.truncate(path, 1000)
        return embag.aligned_empty(*args)

    monkeypatch.setattr(tables, "aligned_empty", truncate_and_allocate)
    with pytest.raises(ValueError, match=r"t\.npy: file must not shrink while it is read, got \d+"):
        embag.load_table(path, "copy", num_threads=n_threads)


# --- Replacement ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch, suffix, failing, error):
    path = tmp_path / f"t{suffix}"
    embag.save_table(path, floats(np.float32))

    def fail(*_):
        raise type(error)(*error.args)

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(type(error)) as caught:
        embag.save_table(path, floats(np.float64))
    if isinstance(error, OSError):
        assert caught.value.filename == str(path)
    with pytest.raises(type(error)):
        embag.save_table(tmp_path / f"new{suffix}", floats(np.float64))
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [path.name]
    assert_same(embag.load_table(path), floats(np.float32))


@pytest.mark.skipif(sys.platform == "win32", reason="the error of POSIX")
def test_a_temporary_file_that_cannot_be_created(tmp_path, monkeypatch):
    path = tmp_path / "t.npy"
    monkeypatch.setattr(os, "urandom", lambda _: bytes(200))  # a name longer than file systems take
    with pytest.raises(OSError, match="File name too long") as caught:
        embag.save_table(path, floats(np.float32))
    assert (caught.value.errno, caught.value.filename) == (errno.ENAMETOOLONG, str(path))


def test_an_error_that_has_only_a_message_names_the_file(tmp_path, monkeypatch):
    path = tmp_path / "t.npy"
    embag.save_table(path, floats(np.float32))

    def fail(*_):
        raise io.UnsupportedOperation("File or stream is not seekable.")

    monkeypatch.setattr(tables, "_map", fail)
    with pytest.raises(OSError, match=r"t\.npy: File or stream is not seekable\.$"):
        embag.load_table(path)


def test_a_new_file_is_flushed_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args))[1]
        )
    embag.save_table(tmp_path / "t.npy", floats(np.float32))
    assert calls == ["fsync", "replace", "fsync"]


def test_permissions_and_links_are_kept(tmp_path):
    path, link = tmp_path / "t.npy", tmp_path / "link.npy"
    embag.save_table(path, floats(np.float32))
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    link.symlink_to("t.npy")
    embag.save_table(link, floats(np.float64))
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_same(embag.load_table(path), floats(np.float64))


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_a_private_file_stays_private(tmp_path):
    path = tmp_path / "t.npy"
    for mode in (0o600, 0o640, 0o444):
        path.write_bytes(b"old")
        path.chmod(mode)
        with replacement.replacement(str(path)) as file:
            file.write(b"new")
            assert stat.S_IMODE(os.stat(file.name).st_mode) == 0o600
            assert replacement.unfinished == {file.name}
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert path.read_bytes() == b"new"
        assert replacement.unfinished == set()
        path.unlink()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root to drop")
def test_files_that_are_read_only_and_of_other_groups_are_replaced():
    """Run as another user: root may write to any file, and set any group."""
    run_python(SCRIPTS / "save_as_another_user.py")


# --- Orders and byte orders that cannot be mapped -------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", ">f2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("block", [1, 100, 8 << 20])
@pytest.mark.parametrize("shape", [(57, 5), (1, 5), (57, 1), (0, 5), (5, 0)])
def test_any_order_is_copied(tmp_path, monkeypatch, dtype, order, block, shape):
    monkeypatch.setattr(tables, "_BLOCK", block)
    path = tmp_path / "t.npy"
    table = floats(np.dtype(dtype).newbyteorder("="), shape)
    np.save(path, np.asarray(table, dtype, order=order))
    copy = embag.load_table(path, "copy")
    assert_same(copy, table)
    assert copy.flags.c_contiguous
    assert copy.flags.writeable


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (np.asfortranarray(floats("f4")), "table must be in C order, got Fortran order"),
        (floats("f4").astype(">f4"), "dtype must be in native byte order to be mapped, got >f4"),
    ],
)
def test_the_error_of_a_map_names_the_remedy(tmp_path, table, message):
    path = tmp_path / "t.npy"
    np.save(path, table)
    with pytest.raises(
        ValueError, match=re.escape(f"{path}: {message}: load it with memory='copy'")
    ) as caught:
        embag.load_table(path)
    assert str(caught.value).endswith("or convert the file by `embag convert IN OUT`")


def test_a_file_in_fortran_order_that_is_truncated_during_a_read(tmp_path, monkeypatch):
    path = tmp_path / "t.npy"
    np.save(path, np.asfortranarray(floats("f4", (1000, 50))))
    real = tables.aligned_empty

    def truncate_and_allocate(*args):
        os.truncate(path, 100_000)
        return real(*args)

    monkeypatch.setattr(tables, "aligned_empty", truncate_and_allocate)
    with pytest.raises(ValueError, match=r"t\.npy: file must not shrink while it is read, got \d+"):
        embag.load_table(path, "copy")


# --- Arguments ------------------------------------------------------------------------


def test_bad_arguments(tmp_path):
    table = floats(np.float32)
    path = tmp_path / "t.npy"
    embag.save_table(path, table)
    for bad in ("t.npz", "t", ".npy", "t.npy.gz", "t.pt"):
        with pytest.raises(
            ValueError, match=rf"^path must end in \.npy or \.safetensors, got .*{re.escape(bad)}'$"
        ):
            embag.load_table(tmp_path / bad)
        with pytest.raises(ValueError, match=r"^path must end in"):
            embag.save_table(bad, table)
    for bad in (3, None, b"t.npy", [path]):
        with pytest.raises(TypeError, match=r"^path must be a str or an os\.PathLike of one, got "):
            embag.load_table(bad)
    for bad in ("mmap", None, ["map"]):
        with pytest.raises(ValueError, match=r"^memory must be 'map' or 'copy', got "):
            embag.load_table(path, bad)
    with pytest.raises(ValueError, match=r"^num_threads must be at least 1, got 0$"):
        embag.load_table(path, num_threads=0)
    with pytest.raises(TypeError, match=r"^name must be a str, got 3$"):
        embag.load_table(path, name=3)
    with pytest.raises(ValueError, match=r"name must be None for a \.npy file, got 'x'$"):
        embag.load_table(path, name="x")
    with pytest.raises(ValueError, match=r"^name must be None for a \.npy file, got 'x'$"):
        embag.save_table(path, table, name="x")
    with pytest.raises(ValueError, match=r"^name must be another than that of the metadata"):
        embag.save_table(tmp_path / "t.safetensors", table, name="__metadata__")
    with pytest.raises(ValueError, match="surrogates"):
        embag.save_table(tmp_path / "t.safetensors", table, name="\ud800")
    for bad in (table.tolist(), None, "t"):
        with pytest.raises(
            TypeError, match=r"^table must be a numpy\.ndarray, a QuantizedTable or"
        ):
            embag.save_table(path, bad)
    for bad in (np.int64, ">f4", object, np.complex64, np.uint16, np.longdouble, "V2"):
        with pytest.raises(TypeError, match=r"^table must be float32, .* in native byte order"):
            embag.save_table(path, np.zeros((2, 2), bad))
    for shape in ((), (3,), (1, 2, 3)):
        with pytest.raises(ValueError, match=r"^table must be 2-D \(n_rows, dim\), got shape "):
            embag.save_table(path, np.zeros(shape, np.float32))
    assert_same(embag.load_table(path), table)
    assert os.listdir(tmp_path) == ["t.npy"]


def test_errors_of_the_system_are_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        embag.load_table(tmp_path / "t.npy")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(IsADirectoryError):
        embag.load_table(tmp_path / "folder.npy")
    with pytest.raises(IsADirectoryError):
        embag.save_table(tmp_path / "folder.npy", floats(np.float32))
    with pytest.raises(FileNotFoundError):
        embag.save_table(tmp_path / "nowhere" / "t.npy", floats(np.float32))
    assert os.listdir(tmp_path) == ["folder.npy"]


# --- Malformed files ------------------------------------------------------------------


def npy(header, data=bytes(140)):
    text = header.encode("latin1")
    text += b" " * (-(10 + len(text)) % 64)
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def npy_of(descr="<f4", shape=(7, 5), order=False):
    return npy(f"{{'descr': {descr!r}, 'fortran_order': {order!r}, 'shape': {shape!r}, }}")


def in_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def in_npz(array):
    file = io.BytesIO()
    np.savez(file, array)
    return file.getvalue()


BAD_NPY = {
    "empty": (b"", "header must be one that NumPy writes"),
    "zip": (in_npz(floats("f4")), "header must be one that NumPy writes"),
    "pickle": (pickle.dumps(floats("f4")), "header must be one that NumPy writes"),
    "magic_alone": (b"\x93NUMPY\x01\x00", "header must be one that NumPy writes"),
    "version_3": (b"\x93NUMPY\x03\x00" + bytes(99), r"got version \(3, 0\)"),
    "long_header": (b"\x93NUMPY\x01\x00\xff\xff" + bytes(99), "header must be"),
    "absurd_header": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(99), "header must be"),
    "no_dict": (npy("[1, 2]"), "header must be"),
    "code": (npy("__import__('os').abort()"), "header must be"),
    "nested": (npy("(" * 5000), "header must be"),
    "deep": (npy("-" * 9000 + "1"), "header must be"),
    "missing_key": (npy("{'descr': '<f4', 'shape': (7, 5)}"), "header must be"),
    "unknown_dtype": (npy_of("<q9"), "header must be"),
    "objects": (in_npy(np.array([[1, None]])), "not unpickled"),
    "objects_in_records": (npy_of([("q8x1", "O"), ("scale", "<f4")]), "not unpickled"),
    "integers": (
        npy_of("<i4"),
        "dtype must be float32, float64, float16, bfloat16, int8, .* got int32",
    ),
    "void": (in_npy(np.zeros((7, 5), ml_dtypes.bfloat16)), r"got \|V2: if it is bfloat16"),
    "rank_0": (npy_of(shape=()), r"shape must be \(n_rows, dim\), got \(\)"),
    "rank_1": (npy_of(shape=(35,)), r"shape must be \(n_rows, dim\), got \(35,\)"),
    "rank_3": (npy_of(shape=(7, 5, 1)), r"shape must be \(n_rows, dim\), got \(7, 5, 1\)"),
    "negative": (npy_of(shape=(-7, -5)), r"shape must be \(n_rows, dim\), got \(-7, -5\)"),
    "overflowing": (npy_of(shape=(2**62, 4)), "file must have 73786976294838206464 bytes"),
    "wrapping": (npy_of(shape=(2**62 + 35, 1)), "file must have"),
    "beyond_int64": (npy_of(shape=(2**64, 0)), "shape must be"),
    "no_array_can": (npy_of(shape=(2**62, 0)), "."),
    "one_row_more": (npy_of(shape=(8, 5)), "file must have 160 bytes of data .* got 140$"),
    "one_row_less": (npy_of(shape=(6, 5)), "file must have 120 bytes of data .* got 140$"),
    "other_records": (npy_of([("a", "<f4")], (35,)), "dtype must be"),
    "records_of_other_size": (npy_of([("q8x5", "u1", (4,)), ("scale", "<f4")]), "dtype must be"),
    "records_of_huge_size": (npy_of([("q8x999999999999999", "u1"), ("s", "<f4")]), "dtype must be"),
    "records_of_2_axes": (
        npy_of([("q8x27", "u1", (27,)), ("scale", "<f4"), ("bias", "<f4")], (4, 1)),
        r"shape must be \(n_rows,\) for records, got \(4, 1\)",
    ),
}


def st(header, data=bytes(140)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def st_of(dtype="F32", shape=(7, 5), offsets=(0, 140), **others):
    return st({"t": {"dtype": dtype, "shape": shape, "data_offsets": offsets}, **others})


TENSOR = {"dtype": "F32", "shape": [7, 5], "data_offsets": [0, 140]}
U8 = {"dtype": "U8", "shape": (7, 20)}


def st_q(text):
    return st_of(**U8, __metadata__={"embag.t": text})


BAD_SAFETENSORS = {
    "empty": (b"", "file must have a header of at least 10 bytes, got 0"),
    "nine_bytes": (bytes(9), "file must have a header of at least 10 bytes, got 9"),
    "no_header": (bytes(99), "header's length must be 2 to 91 in this file, got 0"),
    "absurd_length": (b"\xff" * 99, "header's length must be 2 to 91 in this file, got 1844674"),
    "length_beyond": ((92).to_bytes(8, "little") + bytes(91), "header's length must be"),
    "long_header": (
        st(b" " * 8_000_001),
        "header's length must be 2 to 8000000 in this file, got 8000001",
    ),
    "no_json": (st(b"{'t': 3}"), "header must be JSON"),
    "no_utf8": (st(b'{"\xff": 3}'), "header must be JSON"),
    "utf16": (st(json.dumps({"t": TENSOR}).encode("utf-16")), "header must be JSON"),
    "nested": (st(b"[" * 100_000), "header must be JSON"),
    "nested_objects": (st(b'{"a":' * 100_000), "header must be JSON"),
    "many_digits": (st(b'{"t": ' + b"9" * 10_000 + b"}"), "header must be JSON"),
    "no_object": (st([1, 2]), "header must be a JSON object, got list"),
    "twice": (st(b'{"t": 1, "t": 2}'), "header must be JSON, got a duplicate key"),
    "no_tensors": (st({}), "file must have 0 bytes of tensors"),
    "metadata_alone": (st({"__metadata__": {}}, b""), r"file's tensors \(\), got None"),
    "bad_metadata": (st_of(__metadata__=3), "__metadata__ must be an object of strings"),
    "metadata_of_numbers": (st_of(__metadata__={"a": 3}), "__metadata__ must be an object of str"),
    "tensor_is_none": (st({"t": None}), "tensor 't' must have a dtype, a shape and two"),
    "no_dtype": (st({"t": {"shape": [7, 5], "data_offsets": [0, 140]}}), "tensor 't' must have"),
    "no_shape": (st({"t": {"dtype": "F32", "data_offsets": [0, 140]}}), "tensor 't' must have"),
    "no_offsets": (st({"t": {"dtype": "F32", "shape": [7, 5]}}), "tensor 't' must have"),
    "floats": (st_of(shape=(7.0, 5)), "tensor 't' must have"),
    "bools": (st_of(shape=(True, 35)), "tensor 't' must have"),
    "nan": (st_of(shape=(float("nan"), 35)), "tensor 't' must have"),
    "negative": (st_of(shape=(-7, -5)), "tensor 't' must have"),
    "beyond_int64": (st_of(shape=(2**63, 0)), "tensor 't' must have"),
    "no_array_can": (st_of(shape=(2**62, 0), offsets=(0, 0)), "."),
    "three_offsets": (st_of(offsets=(0, 140, 140)), "tensor 't' must have"),
    "overflowing": (st_of(shape=(2**62, 2**62)), "data_offsets of 't' must span"),
    "wrapping": (st_of(shape=(2**62 + 35, 1)), "data_offsets of 't' must span"),
    "unknown_dtype": (
        st_of("F7"),
        "dtype of 't' must be F16, BF16, F32, F64, .* or U8 .* got 'F7'",
    ),
    "integers": (st_of("I32"), "dtype of 't' must be"),
    "no_metadata": (st_of(**U8), "dtype of 't' must be .* or U8 with embag's metadata, got 'U8'"),
    "rank_1": (st_of(shape=(35,)), r"shape of 't' must be \[n_rows, dim\], got \[35\]"),
    "rank_3": (st_of(shape=(7, 5, 1)), r"shape of 't' must be \[n_rows, dim\], got \[7, 5, 1\]"),
    "wrong_size": (st_of("F64"), "data_offsets of 't' must span 280 bytes, got 140"),
    "offsets_leave": (st_of(shape=(8, 5), offsets=(0, 160)), "file must have 160 bytes .* got 140"),
    "offsets_short": (st_of(shape=(6, 5), offsets=(0, 120)), "file must have 120 bytes .* got 140"),
    "backwards": (st_of(offsets=(140, 0)), "data_offsets of 't' must start at 0"),
    "hole": (st_of(offsets=(4, 144)), "data_offsets of 't' must start at 0 .* got 4, 144"),
    "overlap": (st({"t": TENSOR, "u": TENSOR}), "data_offsets of 'u' must start at 140"),
    "packing_no_json": (st_q("8"[:0]), "metadata of a quantized table must be JSON"),
    "packing_no_object": (st_q("[8]"), "metadata of a quantized table must be a JSON object"),
    "packing_missing": (st_q('{"bits": 8}'), "must be bits, dim and layout, got others"),
    "packing_bits": (st_q('{"bits": 7, "dim": 12, "layout": "fused"}'), "bits must be 8, 4 or 2"),
    "packing_kind": (st_q('{"bits": "8", "dim": 12, "layout": "fused"}'), "bits must be an integ"),
    "packing_list": (st_q('{"bits": 8, "dim": 12, "layout": []}'), "layout must be 'fused' or"),
    "packing_dim": (st_q('{"bits": 8, "dim": 13, "layout": "fused"}'), "packed must have rows of"),
    "packing_large": (st_q('{"bits": 8, "dim": 1e99, "layout": "tbe"}'), "dim must be an integer"),
}


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(
    ("suffix", "case"),
    [(".npy", case) for case in BAD_NPY] + [(".safetensors", case) for case in BAD_SAFETENSORS],
)
def test_bad_files(tmp_path, suffix, case, memory):
    content, message = (BAD_NPY if suffix == ".npy" else BAD_SAFETENSORS)[case]
    path = tmp_path / f"t{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        embag.load_table(path, memory)
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < 1000


def test_each_bad_file_has_one_fault(tmp_path):
    for suffix, content in {".npy": npy_of(), ".safetensors": st_of()}.items():
        (tmp_path / f"t{suffix}").write_bytes(content)
        assert_same(embag.load_table(tmp_path / f"t{suffix}", "copy"), np.zeros((7, 5), "f4"))
    (tmp_path / "q.safetensors").write_bytes(st_q('{"bits": 8, "dim": 12, "layout": "fused"}'))
    assert embag.load_table(tmp_path / "q.safetensors").shape == (7, 12)


def test_misaligned_rows_are_copied_but_not_mapped(tmp_path):
    path = tmp_path / "t.safetensors"
    header = json.dumps({"t": TENSOR}).encode()
    header += b" " * (-len(header) % 4 + 1)
    path.write_bytes(st(header, floats("f4").tobytes()))
    with pytest.raises(ValueError, match="rows must start at a multiple of 4 bytes to be mapped"):
        embag.load_table(path)
    assert_same(embag.load_table(path, "copy"), floats(np.float32))


def test_messages_quote_little(tmp_path):
    (tmp_path / "t.safetensors").write_bytes(st_of(shape=[1] * 1_000_000))
    (tmp_path / "t.npy").write_bytes(npy("x" * 9000))
    for suffix in SUFFIXES:
        with pytest.raises(ValueError, match="must be") as caught:
            embag.load_table(tmp_path / f"t{suffix}")
        assert len(str(caught.value)) < 1000


def test_long_headers_of_safetensors(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    path.write_bytes(st(json.dumps({"t": TENSOR}).encode() + b" " * 1000))
    assert embag.load_table(path, "copy").shape == (7, 5)
    monkeypatch.setattr(headers, "_SAFETENSORS_HEADER", 1000)
    with pytest.raises(ValueError, match="header's length must be 2 to 1000 in this file"):
        embag.load_table(path, "copy")


def write_anew(path, content):
    path.unlink(missing_ok=True)  # truncation makes some file systems flush a file
    path.write_bytes(content)


def check_mutant(path, content, table):
    write_anew(path, content)
    for memory in MEMORIES:
        try:
            loaded = embag.load_table(path, memory)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
            continue
        assert type(loaded) is type(table)
        assert len(bytes_of(loaded)) == table.nbytes
        if isinstance(table, embag.QuantizedTable):
            # Padded rows fit several values of dim; from_packed checks that.
            assert loaded.packed.shape == table.packed.shape
            assert loaded.dim == table.dim or table.layout == "tbe"
            continue
        assert loaded.shape == table.shape
        if loaded.dtype == np.float32:
            embag.embedding_bag(np.arange(len(loaded))[None], loaded, mode="max")
            with pytest.raises(IndexError):
                embag.embedding_bag([[len(loaded)]], loaded)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # NumPy's warnings about headers
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SMALL)
def test_every_prefix_of_a_file(tmp_path, suffix, name):
    path = tmp_path / f"t{suffix}"
    embag.save_table(path, TABLES[name])
    content = path.read_bytes()
    for n in range(len(content)):
        write_anew(path, content[:n])
        for memory in MEMORIES:
            with pytest.raises(ValueError, match=re.escape(f"{path}: ")):
                embag.load_table(path, memory)
    for tail in (b"\x00", b"\n", content):
        write_anew(path, content + tail)
        with pytest.raises(ValueError, match="file must have"):
            embag.load_table(path)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", SMALL)
def test_every_byte_of_a_header_changed(tmp_path, suffix, name):
    path = tmp_path / f"t{suffix}"
    embag.save_table(path, TABLES[name])
    content = path.read_bytes()
    for position in range(len(content) - TABLES[name].nbytes):
        old = content[position]
        for new in {0, 0x20, 0x22, 0x28, 0x2C, 0x2D, 0x30, 0x39, 0x7F, 0xFF, old ^ 1, old ^ 0x80}:
            mutant = content[:position] + bytes([new]) + content[position + 1 :]
            check_mutant(path, mutant, TABLES[name])


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", ["float32", "q8"])
def test_pieces_of_a_header_removed_and_repeated(tmp_path, suffix, name):
    path = tmp_path / f"t{suffix}"
    embag.save_table(path, TABLES[name])
    content = path.read_bytes()
    generator = np.random.default_rng(3)
    for _ in range(500):
        start, stop = sorted(generator.integers(0, len(content) - TABLES[name].nbytes, 2).tolist())
        check_mutant(path, content[:start] + content[stop:], TABLES[name])
        check_mutant(path, content[:stop] + content[start:], TABLES[name])


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_quantization_while_saving(suffix, bits, tmp_path, monkeypatch):
    monkeypatch.setattr("embag.quantized.CHUNK_ENTRIES", 40)
    weight = np.random.default_rng(0).standard_normal((23, 9)).astype(np.float32)
    path, done = tmp_path / f"small.{suffix}", []
    embag.save_table(path, weight, bits=bits, progress=lambda *n: done.append(n))
    expected = embag.quantize(weight, bits)
    for memory in ("map", "copy"):
        table = embag.load_table(path, memory)
        assert (table.bits, table.shape, table.layout) == (bits, (23, 9), "fused")
        np.testing.assert_array_equal(table.packed, expected.packed)
    assert done[-1] == (23, 23)
    assert len(done) == 6
    embag.save_table(path, weight[:0], bits=bits)
    assert embag.load_table(path).shape == (0, 9)


def test_a_row_that_cannot_be_quantized_leaves_the_old_file(tmp_path):
    weight = np.ones((4, 3), np.float32)
    path = tmp_path / "small.npy"
    embag.save_table(path, weight, bits=8)
    before = path.read_bytes()
    weight[2, 1] = np.nan
    with pytest.raises(ValueError, match=r"^weight must have finite rows, got nan in row 2$"):
        embag.save_table(path, weight, bits=8)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["small.npy"]


def test_bits_that_do_not_fit_the_table(tmp_path):
    weight = np.ones((4, 3), np.float32)
    path = tmp_path / "small.npy"
    for table, options, message in (
        (weight, {"bits": 3}, "bits must be 8, 4 or 2, got 3"),
        (embag.quantize(weight), {"bits": 8}, "bits must be None for a quantized table"),
        (weight, {"progress": print}, "progress must be None without bits"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            embag.save_table(path, table, **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_does_not_block(tmp_path):
    path = tmp_path / "table.npy"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"path must lead to a regular file, got a pipe$"):
        embag.load_table(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_or_a_folder_is_not_replaced(tmp_path):
    table = np.ones((2, 3), np.float32)
    path = tmp_path / "table.npy"
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"path must lead to a regular file, got a pipe$"):
        embag.save_table(path, table)
    assert stat.S_ISFIFO(path.stat().st_mode)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        embag.save_table(path, table)
    assert path.is_dir()
    path.rmdir()
    path.symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"got a device or a socket$"):
        embag.save_table(path, table)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.listdir(tmp_path) == ["table.npy"]

"""Checkpoints: the bits of training that goes on, the file, atomicity, invalid items and files."""

import json
import os
import sys

import numpy as np
import pytest
from cases import SWAPPED
from optimizers import N_ROWS, OPTIMIZERS, gradient
from processes import SCRIPTS, run_python

import embag
from embag import optim

safetensors_numpy = pytest.importorskip("safetensors.numpy")

KEY = "embag-checkpoint"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "training.safetensors"


def save_and_load(path, items):
    embag.save_checkpoint(path, items)
    return embag.load_checkpoint(path)


def assert_same(found, optimizer):
    assert type(found) is type(optimizer)
    assert found.table.tobytes() == optimizer.table.tobytes()
    assert found.table.dtype == optimizer.table.dtype
    assert found.states.keys() == optimizer.states.keys()
    for name, state in optimizer.states.items():
        assert found.states[name].tobytes() == state.tobytes()
        assert found.states[name].shape == state.shape
    assert found._options() == optimizer._options()
    assert found.n_steps == optimizer.n_steps
    assert repr(found) == repr(optimizer)


# --- What is saved ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_goes_on_with_the_same_bits(name, dtype, path):
    rng = np.random.default_rng(0)
    steps = [gradient(rng, 5, dtype) for _ in range(6)]
    start = rng.standard_normal((N_ROWS, 5)).astype(dtype)
    for frozen in (None, [0, 4]):
        whole = OPTIMIZERS[name](start.copy(), frozen=frozen)
        optimizer = OPTIMIZERS[name](start.copy(), frozen=frozen)
        for grad in steps[:3]:
            whole.step(grad)
            optimizer.step(grad)
        whole.lr = optimizer.lr = 0.1
        optimizer = save_and_load(path, {"item": optimizer})["item"]
        assert_same(optimizer, whole)
        assert optimizer.table.ctypes.data % 64 == 0
        for grad in steps[3:]:
            whole.step(grad)
            optimizer.step(grad)
        assert_same(optimizer, whole)
        assert (optimizer.table[0] == start[0]).all() == (frozen is not None)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_option_of_the_constructor_is_an_attribute(name, path):
    optimizer = OPTIMIZERS[name](np.ones((2, 2)))
    record = json.loads(saved_metadata(path, {"x": optimizer})[KEY])["items"]["x"]
    assert set(record["options"]) == set(type(optimizer)._option_names())
    assert record["options"]["lr"] == 0.25
    assert record["optimizer"] == type(optimizer).__name__


def test_optimizers_of_other_classes_are_not_forgotten():
    assert set(optim.__all__) == {"Optimizer"} | {
        type(make(np.ones((1, 1)))).__name__ for make in OPTIMIZERS.values()
    }


def saved_metadata(path, items):
    embag.save_checkpoint(path, items)
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


ARRAYS = {
    "scalar": np.array(3.5),
    "bias": np.arange(3.0),
    "cube": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    "strided": np.arange(24, dtype=np.uint64).reshape(4, 6)[::2, 1::2],
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
    "bools": np.array([True, False, True]),
    "empty": np.empty((0, 7), np.float32),
    "read-only": np.broadcast_to(np.float32(2), (3, 3)),
}


def test_arrays(path):
    found = save_and_load(path, ARRAYS)
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()
        assert found[name].flags.writeable


def test_arrays_of_low_precision(path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2"):
        array = np.arange(6).reshape(2, 3).astype(getattr(ml_dtypes, name))
        found = save_and_load(path, {"x": array})["x"]
        assert found.dtype == array.dtype
        assert found.tobytes() == array.tobytes()


def test_the_order_of_items_and_any_name(path):
    names = ["z", "", "a.b", "a", "ü\0", "x" * 300, "embag.a", "weight", KEY]
    items = {name: optim.Adam(np.full((2, 3), float(k))) for k, name in enumerate(names)}
    found = save_and_load(path, {**items, "uint8": np.zeros((2, 2), np.uint8)})
    assert list(found) == [*names, "uint8"]
    for name, optimizer in items.items():
        assert_same(found[name], optimizer)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_empty_tables(shape, path):
    for make in OPTIMIZERS.values():
        optimizer = make(np.ones(shape, np.float32))
        assert_same(save_and_load(path, {"x": optimizer})["x"], optimizer)
    assert save_and_load(path, {}) == {}


def test_a_table_of_distant_rows_in_blocks(path, monkeypatch):
    monkeypatch.setattr(embag.tables, "_BLOCK", 100)
    table = np.random.default_rng(0).standard_normal((50, 6))[::2, 1:4]
    optimizer = optim.Adagrad(table, 0.1)
    assert_same(save_and_load(path, {"x": optimizer})["x"], optimizer)


def test_metadata(path):
    rng = np.random.default_rng(3)
    rng.random(5)
    metadata = {"epoch": 3, "rng": rng.bit_generator.state, "losses": [0.1, None, "ü\ud800"]}
    embag.save_checkpoint(path, {"x": np.ones(2)}, metadata=metadata)
    items, found = embag.load_checkpoint(path, return_metadata=True)
    assert found == metadata
    assert list(items) == ["x"]
    again = np.random.default_rng()
    again.bit_generator.state = found["rng"]
    assert again.random() == rng.random()
    embag.save_checkpoint(path, {})
    assert embag.load_checkpoint(path, return_metadata=True) == ({}, {})


def test_other_readers(path):
    optimizer = optim.Adagrad(np.random.default_rng(0).random((5, 4)), frozen=[2])
    optimizer.step(np.ones((5, 4)))
    flags = np.array([True, False, True])  # odd bytes, that would move tables off their alignment
    embag.save_checkpoint(path, {"flags": flags, "item": optimizer, "half": np.ones(3, np.float16)})
    for memory in ("map", "copy"):
        np.testing.assert_array_equal(embag.load_table(path, memory, name="item"), optimizer.table)
        np.testing.assert_array_equal(
            embag.load_table(path, memory, name="item.sum"), optimizer.states["sum"]
        )
    tensors = safetensors_numpy.load_file(path)
    assert set(tensors) == {"flags", "item", "item.sum", "item.frozen", "half"}
    np.testing.assert_array_equal(tensors["item"], optimizer.table)
    assert tensors["item.frozen"].tolist() == [False, False, True, False, False]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_tables_of_16_bits_with_stochastic_rounding(name, dtype, path):
    if dtype == "bfloat16":
        dtype = pytest.importorskip("ml_dtypes").bfloat16
    rng = np.random.default_rng(0)
    steps = [gradient(rng, 5, np.float32) for _ in range(6)]
    tables = [np.ones((N_ROWS, 5), dtype) for _ in range(2)]
    options = {"stochastic_rounding": True, "seed": 2**64 - 1}
    whole, optimizer = (OPTIMIZERS[name](table, **options) for table in tables)
    for grad in steps[:3]:
        whole.step(grad)
        optimizer.step(grad)
    optimizer = save_and_load(path, {"item": optimizer})["item"]
    for grad in steps[3:]:
        whole.step(grad)
        optimizer.step(grad)
    assert_same(optimizer, whole)


# --- Invalid items ------------------------------------------------------------------


class OwnSGD(optim.SGD):
    pass


TABLE = np.ones((4, 3), np.float32)


def small(**attributes):
    optimizer = optim.Adagrad(np.ones((2, 2)))
    for name, value in attributes.items():
        setattr(optimizer, name, value)
    return optimizer


def test_items_may_not_share_memory(path):
    one, two = small(), small()
    two.states["sum"] = one.states["sum"]
    whole = np.ones((6, 4), np.float32)
    for items in (
        {"a": one, "b": two},
        {"a": one, "b": one},
        {"a": one, "b": one.states["sum"]},
        {"a": whole, "b": np.ones(3), "c": whole[5:]},
        {"a": whole[::-1], "b": whole[1]},
    ):
        with pytest.raises(ValueError, match="items must share no memory, got an overlap of"):
            embag.save_checkpoint(path, items)
    assert not path.exists()
    apart = {"a": whole[:, :2], "b": whole[:, 2:], "c": whole[:0], "d": small()}
    assert save_and_load(path, apart).keys() == apart.keys()


@pytest.mark.parametrize(
    ("items", "error", "message"),
    [
        ([1], TypeError, "items must be a mapping, got list"),
        ({1: TABLE}, TypeError, "items must have names of type str, got 1"),
        ({"__metadata__": TABLE}, ValueError, "items must have other names than '__metadata__'"),
        ({"\ud800": TABLE}, ValueError, "items must have names that UTF-8 can encode"),
        ({"x": [1.0]}, TypeError, r"items\['x'\]: item must be a numpy.ndarray or an optimizer"),
        ({"x": embag.quantize(TABLE)}, TypeError, "got QuantizedTable"),
        ({"x": np.ones(2, complex)}, TypeError, "item must be an array of float16, .* complex128"),
        ({"x": np.array([None])}, TypeError, "item must be an array of float16, .* got object"),
        ({"x": np.ones(2, f"{SWAPPED}f4")}, TypeError, f"in native byte order, got {SWAPPED}f4"),
        ({"x": OwnSGD(TABLE.copy(), 1)}, TypeError, "must be of a class of embag.optim, .* OwnSGD"),
        ({"x": optim.SGD(TABLE, 1), "y": TABLE[1:2]}, ValueError,
         "items must share no memory, got an overlap of 'x' and 'y'"),
        ({"x": small(), "x.sum": TABLE}, ValueError, "tensors must have different names, .*x.sum"),
        ({"x.sum": TABLE, "x": small()}, ValueError, "tensors must have different names, .*x.sum"),
        ({"x": small(table=np.ones((3, 2)))}, ValueError, "table must be float64 of shape"),
        ({"x": optim.SGD(embag.RemappedTable(TABLE), 1)}, TypeError,
         "table must be a numpy.ndarray, got RemappedTable"),
        ({"x": small(table=[[1]])}, TypeError, "table must be a numpy.ndarray, got list"),
        ({"x": small(states={"sum": 3})}, TypeError, "sum must be a numpy.ndarray, got 3"),
        ({"x": small(states={})}, ValueError, "states must be sum, got none"),
    ],
)  # fmt: skip
def test_invalid_items(items, error, message, path):
    path.write_bytes(b"old")
    with pytest.raises(error, match=message):
        embag.save_checkpoint(path, items)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


def test_one_optimizer_under_two_names(path):
    for table in (TABLE.copy(), np.ones((0, 3))):
        optimizer = optim.SGD(table, 1)
        with pytest.raises(ValueError, match="items must share no memory"):
            embag.save_checkpoint(path, {"a": optimizer, "b": optimizer})


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ([1], TypeError, "metadata must be a dict, got list"),
        ({"a": {1}}, ValueError, "metadata must be values that JSON can hold, got Object of type"),
        ({"a": np.nan}, ValueError, "metadata must be values that JSON can hold"),
        ({"a": 10**5000}, ValueError, "metadata must be values that JSON can hold"),
        ({"a": (1, 2)}, ValueError, "metadata must be values that JSON gives back unchanged"),
        ({1: 2}, ValueError, "metadata must be values that JSON gives back unchanged"),
        ({"a": "x" * 8_000_000}, ValueError, "names and metadata must fit a header of 8000000"),
    ],
)
def test_invalid_metadata(metadata, error, message, path):
    with pytest.raises(error, match=message):
        embag.save_checkpoint(path, {"x": TABLE}, metadata=metadata)
    assert not os.listdir(path.parent)


def test_paths(tmp_path):
    for call in (lambda path: embag.save_checkpoint(path, {}), embag.load_checkpoint):
        with pytest.raises(TypeError, match=r"path must be a str or an os\.PathLike"):
            call(3)
        for name in ("x.npy", "x.pt", "x"):
            with pytest.raises(ValueError, match="path must end in"):
                call(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        embag.load_checkpoint(tmp_path / "nowhere.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        embag.save_checkpoint(tmp_path / "nowhere" / "x.safetensors", {})
    with pytest.raises(TypeError, match="return_metadata must be a bool"):
        embag.load_checkpoint(tmp_path / "x.safetensors", return_metadata=1)


def test_no_step_runs_while_a_checkpoint_is_saved(path, monkeypatch):
    optimizer = optim.Adagrad(TABLE.copy())
    with optimizer._locked(), pytest.raises(RuntimeError, match="one step at a time"):
        embag.save_checkpoint(path, {"x": optimizer})
    write = embag.checkpoints.write_tensor

    def step_and_write(file, array):
        with pytest.raises(RuntimeError, match="one step at a time"):
            optimizer.step(np.ones_like(TABLE))
        write(file, array)

    monkeypatch.setattr(embag.checkpoints, "write_tensor", step_and_write)
    assert_same(save_and_load(path, {"x": optimizer})["x"], optimizer)
    optimizer.step(np.ones_like(TABLE))


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    optimizer = optim.Adagrad(TABLE.copy())
    embag.save_checkpoint(path, {"x": optimizer})
    old = path.read_bytes()
    optimizer.step(np.ones_like(TABLE))

    def fail(file, array):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embag.checkpoints, "write_tensor", fail)
    with pytest.raises(OSError, match="No space left"):
        embag.save_checkpoint(path, {"x": optimizer})
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]
    optimizer.step(np.ones_like(TABLE))  # its lock is free again


# --- Invalid files ------------------------------------------------------------------


def rewrite(path, change_record=None, change_tensors=None, **changes):
    """Save a checkpoint, and write it again with safetensors after changes."""
    optimizer = optim.Adam(np.ones((4, 3)), frozen=[1])
    embag.save_checkpoint(path, {"item": optimizer, "bias": np.ones(3)})
    tensors = safetensors_numpy.load_file(path)
    parsed = json.loads(saved_metadata(path, {"item": optimizer, "bias": np.ones(3)})[KEY])
    record = parsed["items"]["item"]
    if change_record is not None:
        change_record(record)
    if change_tensors is not None:
        change_tensors(tensors)
    parsed.update(changes)
    safetensors_numpy.save_file(tensors, path, {KEY: json.dumps(parsed)})


def test_a_rewritten_file_is_loaded(path):
    rewrite(path)
    assert list(embag.load_checkpoint(path)) == ["item", "bias"]


def option(name, value):
    return {"change_record": lambda record: record["options"].update({name: value})}


def member(name, value):
    return {"change_record": lambda record: record.update({name: value})}


def tensor(name, value):
    return {"change_tensors": lambda tensors: tensors.update({name: value})}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (member("optimizer", "Lion"), "optimizer 'item': class must be FTRL, .*, got 'Lion'"),
        (member("optimizer", "Optimizer"), "class must be FTRL, .* got 'Optimizer'"),
        (member("optimizer", ["Adam"]), "class must be .* got list"),
        (member("optimizer", "SGD"), "options must be lr, momentum, stochastic_rounding, seed"),
        (member("n_steps", -1), "n_steps must be a count below 2.*63 - 1, got -1"),
        (member("n_steps", 2**70), "n_steps must be a count below 2.*63 - 1, got an integer"),
        (member("n_steps", True), "n_steps must be a count below 2.*63 - 1, got True"),
        (member("options", []), "options must be lr, betas, eps, stochastic_rounding, seed, got"),
        (member("has_frozen_rows", 1), "has_frozen_rows must be a bool, got 1"),
        (member("has_frozen_rows", False), "tensors must belong to items, got 'item.frozen'"),
        (member("more", 1), "metadata must be optimizer, options, n_steps, has_frozen_rows"),
        (option("lr", float("nan")), "optimizer 'item': lr must be at least 0 and finite in"),
        (option("lr", None), "lr must be a number, got None"),
        (option("betas", [0.5]), "betas must be two numbers"),
        (option("betas", [0.5, 1]), r"betas\[1\] must be at least 0 and less than 1"),
        (option("frozen", [1]), "options must be lr, betas, eps, stochastic_rounding, seed, got"),
        (option("table", [1]), "options must be lr, betas, eps, stochastic_rounding, seed, got"),
        (tensor("item", np.ones((3, 3))), "tensor 'item.exp_avg' must be float64 of shape .3, 3."),
        (tensor("item", np.ones((4, 3), np.float32)), "must be float32 of shape .*, got float64"),
        (tensor("item", np.ones((4, 3), np.int64)), "table must be float32, float64"),
        (tensor("item", np.ones(12)), "table must be 2-D"),
        (tensor("item.exp_avg", np.ones((4, 1))), "tensor 'item.exp_avg' must be .* .4, 1."),
        (tensor("item.frozen", np.ones(3, bool)), r"tensor 'item.frozen' must be .* \(3,\)"),
        (tensor("item.frozen", np.ones(4)), "tensor 'item.frozen' must be bool of shape"),
        (tensor("other", np.ones(4)), "tensors must belong to items, got 'other' of none"),
        ({"change_tensors": lambda tensors: tensors.pop("item.exp_avg_sq")},
         "tensor 'item.exp_avg_sq' must be float64 .* got none"),
        ({"change_tensors": lambda tensors: tensors.pop("item")},
         "tensor 'item' must be in the file, got none"),
        ({"items": {"item": None, "item.exp_avg": None, "bias": None}}, "got 'item.exp_avg_sq'"),
        ({"items": []}, "metadata of a checkpoint must be items and metadata, got others"),
        ({"metadata": 3}, "metadata of a checkpoint must be items and metadata, got others"),
        ({"items": {"item": 3}}, "metadata must be optimizer"),
        ({"more": 3}, "metadata of a checkpoint must be items and metadata, got others"),
    ],
)  # fmt: skip
def test_invalid_files(changes, message, path):
    rewrite(path, **changes)
    with pytest.raises(ValueError, match=f"training.safetensors: .*{message}"):
        embag.load_checkpoint(path)


def test_a_tensor_of_two_items(path):
    optimizer = optim.Adagrad(np.ones((4, 3)))
    embag.save_checkpoint(path, {"x": optimizer})
    parsed = json.loads(saved_metadata(path, {"x": optimizer})[KEY])
    for first in ("x", "x.sum"):
        items = {first: parsed["items"]["x"] if first == "x" else None}
        items |= {"x": parsed["items"]["x"], "x.sum": None}
        safetensors_numpy.save_file(
            safetensors_numpy.load_file(path),
            path,
            {KEY: json.dumps({"items": items, "metadata": {}})},
        )
        with pytest.raises(ValueError, match=r"tensor 'x\.sum' must be .* of one item"):
            embag.load_checkpoint(path)


def test_texts_that_are_no_checkpoint(path):
    embag.save_table(path, TABLE)
    with pytest.raises(ValueError, match="file must be one that save_checkpoint wrote"):
        embag.load_checkpoint(path)
    for text in ("", "{", "[" * 5000, '{"items": {}, "items": {}}', '{"items": 1' + "0" * 5000):
        safetensors_numpy.save_file({"x": TABLE}, path, {KEY: text})
        with pytest.raises(ValueError, match="metadata of a checkpoint must be"):
            embag.load_checkpoint(path)
    safetensors_numpy.save_file(
        {"x": TABLE}, path, {KEY: '{"items": {"x": null, "x": null}, "metadata": {}}'}
    )
    with pytest.raises(ValueError, match="duplicate key"):
        embag.load_checkpoint(path)


def header_of(path, change):
    """Change the header of a checkpoint of an optimizer with bools."""
    embag.save_checkpoint(path, {"x": optim.SGD(np.ones((2, 2)), 1, frozen=[0])})
    data = path.read_bytes()
    n = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:n])
    data = bytearray(data[n:])
    change(header, data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_headers(path):
    def set_shape(shape):
        return lambda header, data: header["x"].update(shape=shape)

    def set_dtype(header, data):
        header["x"]["dtype"] = "C64"

    def set_bool(header, data):
        data[-1] = 2

    def make_huge(header, data):  # 0 bytes, of more rows than a process can address
        header["x"].update(shape=[2**62, 0], data_offsets=[0, 0])
        header["x.frozen"].update(shape=[2], data_offsets=[0, 2])
        del data[2:]

    for change, message in (
        (set_shape([2**62, 2]), "data_offsets of 'x' must span"),
        (set_shape([2, 2] + [2**62] * 400), "digits|must span"),
        (set_shape([1] * 100 + [2, 2]), "table must be 2-D"),
        (set_dtype, "dtype of 'x' must be F16, .*, got 'C64'"),
        (set_bool, "bools of 'x.frozen' must be bytes of 0 or 1"),
        (make_huge, "tensor 'x.frozen' must be bool of shape"),
    ):
        header_of(path, change)
        with pytest.raises(ValueError, match=message):
            embag.load_checkpoint(path)


def test_a_file_cut_anywhere(path):
    embag.save_checkpoint(path, {"x": optim.Adagrad(np.ones((2, 2))), "y": np.ones(3)})
    data = path.read_bytes()
    for n in range(len(data)):
        path.write_bytes(data[:n])
        with pytest.raises(ValueError, match=r"training\.safetensors: "):
            embag.load_checkpoint(path)


# --- Killed processes ---------------------------------------------------------------

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@posix
def test_killed_training_goes_on(tmp_path):
    script = SCRIPTS / "train_with_checkpoints.py"
    whole = run_python(script, tmp_path / "whole.safetensors", 12).stdout.splitlines()
    assert len(whole) == 12
    parts = []
    for last, killed in ((3, True), (4, True), (9, True), (12, False)):
        ended = run_python(
            script, tmp_path / "parts.safetensors", last, *["kill"] * killed, check=False
        )
        assert ended.returncode == (-9 if killed else 0), ended.stderr
        parts += ended.stdout.splitlines()
    assert parts == whole  # the losses, all digits
    files = [(tmp_path / f"{name}.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


@posix
def test_a_process_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    run_python(SCRIPTS / "kill_while_saving.py", tmp_path)

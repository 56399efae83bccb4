"""Let each call of the system fail that an operation makes about its files, one after the other.

    fail_system_calls.py FOLDER NAME...

NAME is an operation. Run with failing_calls.c preloaded (tests/support/preloading.py). Prints, for
each operation and fault, how many calls failed and how often the operation raised.

After each fault: the operation has succeeded, or raised an error that names the file, and left all
files as they were. No file is left over or open, and the next run succeeds.
"""

import contextlib
import ctypes
import errno
import gc
import io
import itertools
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import embag

sys.path.append(str(Path(__file__).parents[1] / "support"))

FOLDER = Path(sys.argv[1]).resolve()
RNG = np.random.default_rng(0)
# Longer than a buffer of Python's, and than the first blocks of a file.
OLD, NEW = RNG.standard_normal((2, 3000, 8)).astype(np.float32)


class Fault(NamedTuple):
    mode: int  # as failing_calls.c numbers them
    error: int
    may_raise: tuple[type, ...]


FAULTS = {
    "an error": Fault(0, errno.EIO, (OSError,)),
    "a full disk": Fault(1, errno.ENOSPC, (OSError,)),
    "a short transfer": Fault(2, 0, ()),
    "the end of a file": Fault(3, 0, (ValueError, OSError)),
}


class Operation(NamedTuple):
    run: Callable[[], object]
    check: Callable[[object], object]  # takes the result; raises AssertionError
    target: Path | None = None  # the file or the folder that is written


class CommandError(OSError, ValueError):
    """The line that a command printed."""


# --- Operations ---------------------------------------------------------------


def table_in(name, table=OLD, **options):
    path = FOLDER / name
    embag.save_table(path, table, **options)
    return path


def same(table, expected):
    if isinstance(expected, embag.RemappedTable):
        assert np.array_equal(table.index_map, expected.index_map)
        assert np.array_equal(table.scales, expected.scales)
        table, expected = table.table, expected.table
    if isinstance(expected, embag.QuantizedTable):
        table, expected = table.packed, expected.packed
    assert np.array_equal(table, expected)


def save(name, table=NEW, old=OLD, **options):
    path = table_in(name, old)
    expected = embag.quantize(table, options["bits"]) if options else table
    return Operation(
        lambda: embag.save_table(path, table, **options),
        lambda _: same(embag.load_table(path, verify=path.suffix != ".npy"), expected),
        path,
    )


def load(name, *arguments, table=OLD, **options):
    path = table_in(name, table)
    return Operation(
        lambda: embag.load_table(path, *arguments, **options), lambda loaded: same(loaded, table)
    )


def load_in_fortran_order():
    path = FOLDER / "table.npy"
    np.save(path, np.asfortranarray(OLD))
    return Operation(lambda: embag.load_table(path, "copy"), lambda loaded: same(loaded, OLD))


def load_by_threads():
    embag.tables._BYTES_PER_THREAD = 1 << 14
    path = table_in("table.npy")
    return Operation(
        lambda: embag.load_table(path, "copy", num_threads=2), lambda loaded: same(loaded, OLD)
    )


REMAPPED = embag.RemappedTable(NEW, np.arange(2000)[::-1].copy(), np.linspace(0, 1, 2000))


def make_optimizer(table):
    optimizer = embag.optim.Adagrad(table.copy(), lr=0.5)
    optimizer.step(np.ones_like(table))
    return optimizer


def save_checkpoint():
    path = FOLDER / "training.safetensors"
    embag.save_checkpoint(path, {"item": make_optimizer(OLD)})
    items = {"item": make_optimizer(NEW), "bias": OLD}

    def check(_):
        loaded = embag.load_checkpoint(path, verify=True)
        same(loaded["item"].table, items["item"].table)
        same(loaded["bias"], OLD)
        assert loaded["item"].n_steps == 1

    return Operation(lambda: embag.save_checkpoint(path, items), check, path)


def load_checkpoint(**options):
    path = FOLDER / "training.safetensors"
    items = {"item": make_optimizer(OLD), "bias": NEW}
    embag.save_checkpoint(path, items)

    def check(loaded):
        same(loaded["item"].table, items["item"].table)
        same(loaded["item"].states["sum"], items["item"].states["sum"])
        same(loaded["bias"], NEW)

    return Operation(lambda: embag.load_checkpoint(path, **options), check)


def make_collection(*tables):
    tables = dict(zip("ab", tables, strict=True))
    return embag.EmbeddingBagCollection(tables, [embag.Feature(name, name) for name in tables])


def check_collection(loaded):
    same(loaded.tables["a"], NEW)
    same(loaded.tables["b"], REMAPPED)


def save_collection(exists=True):
    folder = FOLDER / "collection"
    if exists:
        make_collection(OLD, OLD).save(folder)
    ebc = make_collection(NEW, REMAPPED)
    return Operation(
        lambda: ebc.save(folder),
        lambda _: check_collection(embag.EmbeddingBagCollection.load(folder, verify=True)),
        folder,
    )


def load_collection(**options):
    make_collection(NEW, REMAPPED).save(FOLDER)
    return Operation(lambda: embag.EmbeddingBagCollection.load(FOLDER, **options), check_collection)


# --- Commands -----------------------------------------------------------------


def run_command(*words):
    """Run a command in this process, and raise the line that it prints if it fails."""
    from embag import cli  # noqa: PLC0415  # not all operations have pyarrow

    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        status = cli.main(list(map(str, words)))
    line = errors.getvalue()
    if status == 0:
        assert line == "", line
        return output.getvalue()
    assert status == 1, status
    assert output.getvalue() == ""
    assert line.startswith(f"embag {words[0]}: error: "), line
    assert line.count("\n") == 1, line
    raise CommandError(line)


def pool(source, target):
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.csv  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    from embag.cli import _sources  # noqa: PLC0415

    _sources._BLOCK = 1 << 12  # so that a CSV file has several
    source, target = FOLDER / source, FOLDER / target
    ids = np.arange(3000, dtype=np.int64)
    lists = pa.FixedSizeListArray.from_arrays(ids, 2).cast(pa.list_(pa.int64()))
    column = ["--column", "ids"]
    if source.suffix == ".parquet":
        pq.write_table(pa.table({"ids": lists}), source, row_group_size=500)
    elif source.suffix in (".arrow", ".arrows"):
        opened = pa.ipc.new_file if source.suffix == ".arrow" else pa.ipc.new_stream
        with opened(source, pa.schema([("ids", lists.type)])) as writer:
            writer.write_table(pa.table({"ids": lists}), 500)
    elif source.suffix == ".npy":
        np.save(source, ids.reshape(-1, 2))
        column = []
    else:
        rows = [f"{one} {other}" for one, other in ids.reshape(-1, 2)]
        if source.suffix == ".jsonl":
            source.write_text("".join(f'{{"ids": "{row}"}}\n' for row in rows))
        else:
            pyarrow.csv.write_csv(pa.table({"ids": rows}), source)
    table = table_in("table.npy")
    target.write_bytes(b"old")
    expected = embag.embedding_bag(ids.reshape(-1, 2), OLD)

    def check(_):
        if target.suffix == ".npy":
            return same(np.load(target), expected)
        if target.suffix == ".parquet":
            vectors = pq.read_table(pa.BufferReader(target.read_bytes()))["ids_vector"]
        else:
            opened = pa.ipc.open_stream if target.suffix == ".arrows" else pa.ipc.open_file
            with pa.OSFile(str(target)) as file:
                vectors = opened(file).read_all()["ids_vector"]
        return same(np.array(vectors.to_pylist(), np.float32), expected)

    options = [*column, "--table", table, "--out", target]
    return Operation(lambda: run_command("pool", source, *options), check, target)


def quantize():
    source, target = table_in("in.npy", NEW), table_in("out.npy")
    return Operation(
        lambda: run_command("quantize", source, target),
        lambda _: same(embag.load_table(target), embag.quantize(NEW)),
        target,
    )


def convert(table, source, target):
    source, target = table_in(source, table), table_in(target)
    return Operation(
        lambda: run_command("convert", source, target),
        lambda _: same(embag.load_table(target), table),
        target,
    )


def info(*options):
    path = table_in("table.safetensors")
    return Operation(lambda: run_command("info", path, *options), str.strip)


def embed():
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415
    import static_models  # noqa: PLC0415

    from embag import text  # noqa: PLC0415

    static_models.save_model2vec(FOLDER / "model", {"normalize": True})
    pq.write_table(pa.table({"text": static_models.TEXTS}), FOLDER / "in.parquet")
    target = FOLDER / "out.npy"
    target.write_bytes(b"old")
    options = ["--column", "text", "--model", FOLDER / "model", "--out", target]
    model = text.StaticModel.from_folder(FOLDER / "model")
    return Operation(
        lambda: run_command("embed", FOLDER / "in.parquet", *options),
        lambda _: same(np.load(target), model.encode(static_models.TEXTS)),
        target,
    )


OPERATIONS = {
    "save .npy": lambda: save("table.npy"),
    "save .safetensors": lambda: save("table.safetensors"),
    "save 8 bits": lambda: save("table.safetensors", bits=8),
    "save a remapped table": lambda: save("table.safetensors", REMAPPED),
    "map": lambda: load("table.npy"),
    "map and verify": lambda: load("table.safetensors", verify=True),
    "copy": lambda: load("table.safetensors", "copy"),
    "copy and verify": lambda: load("table.safetensors", "copy", verify=True),
    "copy in Fortran order": load_in_fortran_order,
    "copy by threads": load_by_threads,
    "load a remapped table": lambda: load("table.safetensors", table=REMAPPED),
    "save_checkpoint": save_checkpoint,
    "load_checkpoint": load_checkpoint,
    "load_checkpoint and verify": lambda: load_checkpoint(verify=True),
    "save a collection": save_collection,
    "save a collection in a new folder": lambda: save_collection(exists=False),
    "load a collection": load_collection,
    "load a collection and verify": lambda: load_collection(memory="copy", verify=True),
    **{
        f"pool {source} {target}": lambda source=source, target=target: pool(source, target)
        for source, target in [
            ("in.parquet", "out.parquet"),
            ("in.arrow", "out.arrow"),
            ("in.arrows", "out.arrows"),
            ("in.npy", "out.npy"),
            ("in.csv", "out.npy"),
            ("in.jsonl", "out.npy"),
        ]
    },
    "quantize": quantize,
    "convert": lambda: convert(NEW, "in.npy", "out.safetensors"),
    "convert a remapped table": lambda: convert(REMAPPED, "in.safetensors", "out.safetensors"),
    "info": info,
    "info --verify": lambda: info("--verify"),
    "embed": embed,
}

# --- Faults -------------------------------------------------------------------

calls = ctypes.CDLL(None)
calls.calls_failed.restype = calls.calls_failed_path.restype = ctypes.c_char_p
calls.calls_disarm.restype = ctypes.c_long


def read_files():
    return {path: path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}


def restore_files(files):
    for path, content in read_files().items():
        if files.get(path) != content:
            path.unlink()  # truncation makes some file systems flush a file
            if path.parent != FOLDER and not os.listdir(path.parent):
                path.parent.rmdir()
    for path, content in files.items():
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def open_files():
    paths = []
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of the iteration itself
            paths.append(str(file.readlink()))
    return sorted(paths)


def run_with_fault(run, fault, number):
    """Return the result, the error, the call that failed and its file."""
    result = error = None
    calls.calls_arm(os.fsencode(FOLDER), fault.mode, fault.error, ctypes.c_long(number))
    try:
        result = run()
    except Exception as raised:
        error = raised
    finally:
        calls.calls_disarm()
    return result, error, calls.calls_failed().decode(), os.fsdecode(calls.calls_failed_path())


def check_error(operation, error, fault, path):
    assert isinstance(error, fault.may_raise), repr(error)
    if ".embag-" in path:
        path = str(operation.target)
    if fault.mode == FAULTS["the end of a file"].mode:
        path = str(FOLDER)  # the first such read may be at the end of its file
    assert path in str(error), f"{error} does not name {path}"


def count_faults(operation, fault):
    """Let the first call fail, then the second, and so on; return how many, and the errors."""
    files = read_files()
    before = open_files()
    n_errors = 0
    for number in itertools.count():
        result, error, call, path = run_with_fault(operation.run, fault, number)
        has_failed = error is not None
        try:
            if has_failed:
                n_errors += 1
                check_error(operation, error, fault, path)
                # A command may fail after that, if a file that it has read cannot be closed.
                if call != "close" or f"; {operation.target} has been written" not in str(error):
                    assert read_files() == files, f"files have changed after {error!r}"
            else:
                operation.check(result)
            assert not list(FOLDER.rglob(".embag-*"))
            result = error = None
            gc.collect()
            assert open_files() == before, f"files are still open: {open_files()}"
            restore_files(files)
            if has_failed:
                operation.check(operation.run())
                restore_files(files)
        except BaseException:
            print(f"call {number}: {call} of {path}", file=sys.stderr)
            raise
        if not call:
            assert not has_failed
            return number, n_errors
    raise AssertionError


def count_limits(operation):
    """Limit the size of files, so that writes fail (EFBIG); return how many limits and errors."""
    files = read_files()
    operation.run()
    after = read_files()
    size = max(len(after[path]) for path in after if operation.target in (path, path.parent))
    restore_files(files)
    n_errors = 0
    limits = (0, 1, size // 4, size // 2, size - 1)
    for limit in limits:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            operation.run()
        except OSError as error:
            assert str(operation.target) in str(error), error
            n_errors += 1
        else:
            raise AssertionError(f"{size} bytes were written in spite of a limit of {limit}")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert read_files() == files, limit
    operation.check(operation.run())
    restore_files(files)
    return len(limits), n_errors


for name in sys.argv[2:]:
    operation = OPERATIONS[name]()
    files = read_files()
    operation.check(operation.run())  # imports what it needs
    restore_files(files)
    gc.collect()
    gc.freeze()  # collections are fast from now on
    for kind, fault in FAULTS.items():
        if kind == "a full disk" and operation.target is None:
            continue
        print(name, kind, *count_faults(operation, fault), sep=", ", flush=True)
    if operation.target is not None:
        print(name, "a limit", *count_limits(operation), sep=", ", flush=True)
    restore_files({})

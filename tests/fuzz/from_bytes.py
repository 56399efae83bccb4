"""Coverage-guided fuzzing: python -m tests.fuzz.from_bytes cases|files|packed.

    cases    hypothesis turns the bytes into the choices of a case of calls.py
    files    the bytes are a file, for `load_table` and a lookup of all its rows
    packed   the bytes are the rows of a `QuantizedTable`, and ids and offsets of a lookup

Options of libFuzzer may follow, such as -max_total_time=300 and a folder of first inputs.
Coverage counts the branches of embag's Python files; with a library built by EMBAG_SANITIZE,
the sanitizers report errors. It needs the package atheris, which no extra installs.
"""

import random
import sys
import tempfile
from pathlib import Path

import atheris
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

with atheris.instrument_imports(include=["embag"]):
    import embag
    import embag._files.headers
    import embag.tables

import numpy as np

from .calls import case
from .checked_call import run
from .child import prepare_process
from .file_cases import RAISES, whole_files
from .table_cases import check_quantized


@settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def one_case(rng):
    run(case(rng))


def one_file(data):
    path = FOLDER / ("table.npy" if data[:1] < b"\x80" else "table.safetensors")
    path.unlink(missing_ok=True)  # an existing map keeps the old file
    path.write_bytes(data[1:])
    for memory in ("map", "copy"):
        try:
            table = embag.load_table(path, memory)
        except RAISES:
            continue
        if isinstance(table, embag.QuantizedTable):
            check_quantized(table)
        n_rows, dim = table.shape
        if n_rows < 10**5:
            assert embag.embedding_bag(np.arange(n_rows)[:, None], table).shape == (n_rows, dim)


def one_packed(data):
    source = atheris.FuzzedDataProvider(data)
    bits, layout = source.PickValueInList([8, 4, 2, 3]), source.PickValueInList(["fused", "tbe"])
    dim, n_bytes = source.ConsumeIntInRange(-1, 300), source.ConsumeIntInRange(0, 320)
    wide = source.ConsumeBool()
    ids = np.array(source.ConsumeIntList(source.ConsumeIntInRange(0, 20), 8 if wide else 1), "i8")
    offsets = np.array(source.ConsumeIntList(source.ConsumeIntInRange(0, 6), 1), "i8")
    mode = source.PickValueInList(["sum", "mean", "sqrtn", "max", "min"])
    rows = np.frombuffer(source.ConsumeBytes(4000), np.uint8)
    rows = rows[: len(rows) // max(1, n_bytes) * n_bytes].reshape(-1, n_bytes or 1)
    try:
        table = embag.QuantizedTable.from_packed(rows, bits, dim, layout)
        check_quantized(table)
        embag.embedding_bag(ids, table, offsets, mode=mode)
    except (TypeError, ValueError, IndexError):
        pass


def seeds(name):
    """Return the first inputs."""
    if name == "files":
        return [b"\0\xff"[len(suffix) > 4 :][:1] + data for suffix, data, _ in whole_files()]
    return [random.Random(k).randbytes(2000) for k in range(100)]


if __name__ == "__main__":
    targets = {
        "cases": one_case.hypothesis.fuzz_one_input,
        "files": one_file,
        "packed": one_packed,
    }
    target = sys.argv.pop(1)
    prepare_process(eager=False)
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder)
        tempfile.tempdir = folder
        begin = Path(tempfile.mkdtemp())
        for number, seed in enumerate(seeds(target)):
            (begin / str(number)).write_bytes(seed)
        atheris.Setup([*sys.argv, str(begin)], targets[target])
        atheris.Fuzz()

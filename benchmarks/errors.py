"""The error of each encoding: `python -m benchmarks.errors`, from the root.

The tables are a million random numbers (standard normal, D = 64), and the token vectors of
WordLlama (D = 256) if the package is installed. Each is stored in every encoding. "entry" is the
root mean square of the errors of all entries, divided by that of the entries; "mean of 20" is the
same for the means of 10,000 bags of 20 rows. The error of a quantized entry is first compared with
its bound, half a step of its row.

`--publish` writes `results/errors.json`. The figures do not depend on the processor.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import embag
from benchmarks import machine, published

BAG, N_BAGS = 20, 10_000
DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}
Floats = NDArray[np.float32]


def tables() -> Iterator[tuple[str, Floats]]:
    rng = np.random.default_rng(0)
    yield "random numbers", rng.standard_normal((15_625, 64), np.float32)
    try:
        from embag.cli._sentence_search import load_model  # noqa: PLC0415

        yield "WordLlama", np.array(load_model().table, np.float32)
    except Exception as error:  # the extra `demo` is not installed
        print(f"without WordLlama: {error}")


def encode(table: Floats) -> Iterator[tuple[str, int, Any, Floats]]:
    """Yield the name, the bits, the encoded table and its rows as floats."""
    for name, dtype in DTYPES.items():
        encoded = table.astype(dtype)
        yield name, encoded.dtype.itemsize * 8, encoded, encoded.astype(np.float32)
    for bits in (8, 4, 2):
        quantized = embag.quantize(table, bits=bits)
        floats = quantized.dequantize()
        steps = (table.max(axis=1) - table.min(axis=1)) / (2**bits - 1)
        slack = 0.5 + 4 * 2**bits * (2**-23 if bits == 8 else 2**-10)  # scale, bias are rounded
        assert (np.abs(floats - table).max(axis=1) <= slack * steps).all(), bits
        yield f"{bits} bits", bits, quantized, floats


def relative(error: NDArray[Any], of: NDArray[Any]) -> float:
    return float(np.sqrt(np.mean(error.astype(np.float64) ** 2) / np.mean(of.astype(float) ** 2)))


def measure(table: Floats) -> Iterator[dict[str, Any]]:
    ids = np.random.default_rng(1).integers(len(table), size=(N_BAGS, BAG))
    exact = table[ids].mean(axis=1, dtype=np.float64)
    for name, bits, encoded, floats in encode(table):
        pooled = embag.embedding_bag(ids, encoded, mode="mean")
        np.testing.assert_allclose(
            pooled, floats[ids].mean(axis=1, dtype=np.float64), rtol=1e-3, atol=1e-5, err_msg=name
        )
        yield {
            "encoding": name,
            "bits": bits,
            "entry": relative(floats - table, table),
            "mean of 20": relative(pooled - exact, exact),
        }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.errors", description=__doc__)
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--publish", action="store_true", help="write them to results/")
    arguments = parser.parse_args()
    results = machine.facts() | {"tables": {}}
    for name, table in tables():
        results["tables"][name] = list(measure(table))
        for line in results["tables"][name]:
            print(f"{name:15} {line['encoding']:14} {line['entry']:.2e} {line['mean of 20']:.2e}")
    text = json.dumps(results, indent=1) + "\n"
    if arguments.json:
        arguments.json.write_text(text)
    if arguments.publish:
        (published.FOLDER / "errors.json").write_text(text)


if __name__ == "__main__":
    main()

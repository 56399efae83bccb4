"""Strings to rows: the cost with each library that docs/ids.md shows.

    python -m benchmarks.strings

A million strings of a vocabulary of 100,000, one in a hundred unknown, in lists of 20. One
thread. All results are compared first. Then the contenders take turns, and medians are printed,
in ns per string, as the table of docs/ids.md. "prepare" is what happens once for each vocabulary.
"""

import os

os.environ.update(POLARS_MAX_THREADS="1", TOKENIZERS_PARALLELISM="false")

import argparse
import datetime
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import tokenizers

import embag
from benchmarks import machine

SIZE, DIM = 20, 64


class Contender(NamedTuple):
    """A way from strings to rows."""

    name: str
    given: Any  # the strings, as the library has them
    prepare: Callable[[], Any]  # returns the vocabulary
    look_up: Callable[[Any, Any], Any]  # returns the rows of `given`, by the vocabulary
    unknown: int | None  # the row of unknown strings; None where they are null


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strings", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    pa.set_cpu_count(1)
    print(measure(options.strings, options.vocabulary, options.rounds))


def measure(n: int, n_words: int, n_rounds: int) -> str:
    """Return the table of docs/ids.md."""
    rng = np.random.default_rng(0)
    words = [f"item-{number:07}" for number in rng.permutation(10 * n_words)[:n_words]]
    rows = rng.integers(0, n_words, n)
    unknown = rng.random(n) < 0.01
    strings = [f"new-{i}" if unknown[i] else words[rows[i]] for i in range(n)]
    expected = np.where(unknown, -1, rows)
    each = contenders(words, strings)
    for contender in each:
        check(contender, expected)
    looking: dict[str, list[float]] = {contender.name: [] for contender in each}
    preparing: dict[str, list[float]] = {contender.name: [] for contender in each}
    pooling = []
    table = embag.aligned_empty((n_words, DIM), np.float32)
    table[...] = rng.standard_normal((n_words, DIM))
    ids = rows.reshape(-1, SIZE)
    for _ in range(n_rounds):
        for contender in each:
            start = time.perf_counter()
            vocabulary = contender.prepare()
            middle = time.perf_counter()
            contender.look_up(contender.given, vocabulary)
            preparing[contender.name].append(middle - start)
            looking[contender.name].append(time.perf_counter() - middle)
        start = time.perf_counter()
        embag.embedding_bag(ids, table, num_threads=1)
        pooling.append(time.perf_counter() - start)
    lines = ["| | ns per string | prepare, ms |", "|---|--:|--:|"]
    for name, seconds in looking.items():
        ms = statistics.median(preparing[name]) * 1e3
        lines.append(f"| {name} | {statistics.median(seconds) / n * 1e9:.0f} | {ms:.1f} |")
    ns = statistics.median(pooling) / n * 1e9
    lines.append(f"| for comparison: `embedding_bag` of the rows, D = {DIM} | {ns:.0f} | |")
    processor = machine.facts()["machine"]["name"]
    load = os.getloadavg()[0]
    packages = ", ".join(
        f"{module.__name__} {module.__version__}" for module in (pa, pl, pd, tokenizers)
    )
    date = datetime.datetime.now(datetime.timezone.utc).date()
    return "\n".join([*lines, "", f"{processor}, one thread, load {load:.1f}; {packages}; {date}."])


def contenders(words: list[str], strings: list[str]) -> list[Contender]:
    offsets = pa.array(np.arange(0, len(strings) + 1, SIZE), pa.int32())
    column = pa.ListArray.from_arrays(offsets, pa.array(strings))
    encoded = column.values.dictionary_encode()
    series = pl.Series(column)
    frame = series.to_frame("items")
    rows = pd.Series(strings)
    texts = [" ".join(strings[i : i + SIZE]) for i in range(0, len(strings), SIZE)]
    batch = pl.col("items").list.eval
    return [
        Contender(
            "a `dict`, in a loop",
            strings,
            lambda: {word: row for row, word in enumerate(words)},
            lambda given, rows: np.array([rows.get(word, -1) for word in given]),
            -1,
        ),
        Contender(
            "pyarrow, `index_in`",
            column,
            lambda: pa.array(words),
            lambda given, words: pc.index_in(given.values, words),
            None,
        ),
        Contender(
            "pyarrow, `index_in` of the dictionary",
            encoded,
            lambda: pa.array(words),
            lambda given, words: pa.DictionaryArray.from_arrays(
                given.indices, pc.index_in(given.dictionary, words)
            ),
            None,
        ),
        Contender(
            "polars, `replace_strict`",
            frame,
            lambda: (pl.Series(words), pl.int_range(len(words), dtype=pl.Int32, eager=True)),
            lambda given, vocabulary: given.select(
                batch(pl.element().replace_strict(*vocabulary, default=None))
            )["items"].explode(),
            None,
        ),
        Contender(
            "polars, `Enum`",
            frame,
            lambda: pl.Enum(words),
            lambda given, enum: given.select(
                batch(pl.element().cast(enum, strict=False).to_physical())
            )["items"].explode(),
            None,
        ),
        Contender(
            "pandas, `Index.get_indexer`",
            rows,
            lambda: pd.Index(words),
            lambda given, index: index.get_indexer(given),
            -1,
        ),
        Contender(
            "pandas, `set_categories` of a categorical",
            pd.Categorical(rows),
            lambda: pd.Index(words),
            lambda given, index: given.set_categories(index).codes,
            -1,
        ),
        Contender(
            "tokenizers, `WordLevel`, text to ids",
            texts,
            lambda: as_tokenizer(words),
            lambda given, tokenizer: [
                encoding.ids for encoding in tokenizer.encode_batch_fast(given)
            ],
            len(words),
        ),
    ]


def as_tokenizer(words: list[str]) -> tokenizers.Tokenizer:
    rows = {word: row for row, word in enumerate([*words, "[UNK]"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(rows, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return tokenizer


def check(contender: Contender, expected: np.ndarray[Any, Any]) -> None:
    """Raise unless a contender finds the rows."""
    found = contender.look_up(contender.given, contender.prepare())
    if isinstance(found, pa.DictionaryArray):
        found = found.dictionary_decode()
    if isinstance(found, pl.Series):
        found = found.to_arrow()
    if isinstance(found, pa.Array):
        found = found.cast(pa.int64()).fill_null(-1).to_numpy()
    found = np.asarray(found).reshape(-1)
    if contender.unknown not in (None, -1):
        found = np.where(found == contender.unknown, -1, found)
    np.testing.assert_array_equal(found, expected, err_msg=contender.name)


if __name__ == "__main__":
    main()

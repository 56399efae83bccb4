"""Files in long format, with one id in each row, as a stream of lists: one for each key.

The columns are read whole. Their rows are grouped by key, and then yielded as record batches of
keys and lists, which `embag pool` treats like those of any other file.

Memory holds these columns, and the order of the rows by key. docs/cli.md has figures.

Tested in tests/cli/test_long_format.py.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embag._grouping import group_by_segment
from embag.cli import _lists, _sinks, _sources
from embag.cli._sources import Source

_ROWS_AT_ONCE = 1 << 18  # rows of the file whose lists are made at once, unless a list is longer


@contextlib.contextmanager
def open_grouped(path: str, by: str, numbers: dict[str, pa.DataType]) -> Iterator[Source]:
    """Open a file; each row of the source is a key, with a list of each column in `numbers`.

    `numbers` has the kind of the numbers of each column. Keys are sorted, null last.
    Rows keep their order within a key.
    """
    with _sources.open_source(path, {}, list(dict.fromkeys([by, *numbers]))) as source:
        for name, kind in numbers.items():
            _lists.check_numbers(source.schema.field(name), kind)
        lists = [pa.field(n, pa.large_list(source.schema.field(n).type)) for n in numbers]
        schema = pa.schema([_sinks.decoded_field(source.schema.field(by)), *lists])
        done = 0.0

        def batches() -> Iterator[pa.RecordBatch]:
            nonlocal done
            events = _group(source, by, list(numbers))
            n_rows = max(1, int(events.offsets[-1]))
            for keys in events.parts():
                yield events.lists_of(keys, schema)
                done = int(events.offsets[keys.stop]) / n_rows

        # Reading has no progress of its own: the whole file is read before the first list.
        yield Source(schema, batches(), None, source.n_bytes, lambda: int(done * source.n_bytes))


class _Events(NamedTuple):
    """The rows of a file, grouped by key."""

    keys: pa.Array  # sorted, each once
    offsets: NDArray[np.int64]  # where the rows of each key start in the order of keys
    order: NDArray[np.int64] | None  # of rows; None: they are in the order of keys
    columns: list[pa.Array]  # of numbers

    def parts(self) -> Iterator[slice]:
        """Yield slices of keys that have about _ROWS_AT_ONCE rows."""
        starts = np.arange(0, int(self.offsets[-1]), _ROWS_AT_ONCE)
        cuts = np.searchsorted(self.offsets, starts, side="right") - 1
        cuts = np.unique([*cuts.tolist(), len(self.keys)])
        for start, stop in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
            yield slice(start, stop)

    def lists_of(self, keys: slice, schema: pa.Schema) -> pa.RecordBatch:
        """Return some keys with their lists."""
        bounds = self.offsets[keys.start : keys.stop + 1]
        first, n = int(bounds[0]), int(bounds[-1] - bounds[0])
        if self.order is None:
            values = [column.slice(first, n) for column in self.columns]
        else:
            rows = pa.array(self.order[first : first + n])
            values = [column.take(rows) for column in self.columns]
        offsets = pa.array(bounds - first)
        lists = [pa.LargeListArray.from_arrays(offsets, items) for items in values]
        names = self.keys.slice(keys.start, keys.stop - keys.start)
        return pa.record_batch([names, *lists], schema=schema)


def _group(source: Source, by: str, numbers: list[str]) -> _Events:
    """Read all rows and group them by key."""
    fields = [_sinks.decoded_field(source.schema.field(name)) for name in (by, *numbers)]
    parts: list[list[pa.Array]] = [[pa.array([], field.type)] for field in fields]
    for batch in _sinks.decode_dictionaries(source.batches, [by]):
        for arrays, field in zip(parts, fields, strict=True):
            arrays.append(batch[field.name])
    every_key = pa.chunked_array(parts.pop(0))
    codes = pc.dictionary_encode(every_key, null_encoding="encode").combine_chunks()
    keys = codes.dictionary
    by_key = pc.sort_indices(keys)  # null is the last
    numbers_of_keys = np.empty(len(keys), np.int32)
    numbers_of_keys[by_key.to_numpy()] = np.arange(len(keys), dtype=np.int32)
    segments = group_by_segment(numbers_of_keys[codes.indices.to_numpy()], len(keys))
    assert segments is not None
    columns = [pa.concat_arrays(parts.pop(0)) for _ in numbers]
    return _Events(keys.take(by_key), segments.offsets, segments.order, columns)

"""`EmbeddingBagCollection`: many tables and many features in one call.

A request to a recommender looks up some 26 features. One call for all of them checks its
arguments once, releases the GIL once, and prefetches rows of later features while it adds
those of earlier ones (_kernels/collection.pxi).

Compiled code handles the common calls and returns None for any other. Those become one
`Call` for each feature, with all checks and conversions, and then go to the same kernels.

Tested in tests/collection/.
"""

import dataclasses
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _collection_files, _encodings, _modes
from embag._bags import FEATURE_IDS, VALUES, ArrayBags, add_weights, as_bags
from embag._call import Call
from embag._collection_gradients import Part, gradients, split_grad_output
from embag._columns import frames, vectors
from embag._columns.pieces import Column, Piece, zip_chunks
from embag._kernels.dispatch import kernels
from embag._optimizer import Optimizer, step_together
from embag._process import threads
from embag._types import Invalid, Mode, Table
from embag._unpooled import Unpooled
from embag.backward import EmbeddingBagGrads
from embag.tables import check_memory

_FLOAT32 = np.dtype(np.float32)

# Held for the one step that replaces a state. Reentrant: a signal handler may call `replace`.
_replacing = threading.RLock()

_MOST_COLUMNS = sys.maxsize // 64  # the number of their bits fits a Py_ssize_t


class Feature(NamedTuple):
    """A feature: the table of its ids, and how its rows are reduced.

    Parameters
    ----------
    name : str
        The name, for `EmbeddingBagCollection.slices` and messages.
    table : str
        The name of the table. Features may share a table.
    mode : {"sum", "mean", "sqrtn", "max", "min", "none"}, optional
        How the rows of a bag are reduced. "none": it has no bags, and returns a row for each id.
    padding_idx : int, optional
        A row that is skipped; a negative number counts from the end. For "none", a row like any
        other.
    default_idx : int, optional
        The row of a bag in which no id counts. Not for "none".
    invalid : {"raise", "skip"} or int, optional
        What to do with ids out of range; by default what the collection does.
    normalize : bool, optional
        If True, divide each row of the feature's result by its Euclidean norm.

    Examples
    --------
    >>> import embag
    >>> feature = embag.Feature("clicked", "items", mode="mean", default_idx=0)
    >>> feature.mode, feature.default_idx
    ('mean', 0)
    """

    name: str
    table: str
    mode: Mode | Literal["none"] = "sum"
    padding_idx: int | None = None
    default_idx: int | None = None
    invalid: Invalid | None = None
    normalize: bool = False


class _Lookup(NamedTuple):
    """The part of a feature's `Call` that does not depend on ids."""

    table: _encodings.Table
    mode: _modes.Mode
    padding: int
    refuse: bool
    stand_in: int
    default: int
    normalizes: bool

    def call(self, bags: Any, weights: Any, given_weights: Any) -> Call:
        table, mode, padding, refuse, stand_in, default, normalizes = self
        return Call(
            *(table, bags, weights, mode, padding, refuse, stand_in, default, normalizes),
            given_weights=given_weights,
        )


class _State(NamedTuple):
    """Everything that depends on the tables. It is immutable: `replace` makes another."""

    tables: Mapping[str, Table]
    encoded: dict[str, _encodings.Table]
    lookups: tuple[_Lookup, ...]  # one for each feature with bags
    unpooled: tuple[Unpooled, ...]  # the others
    compiled: Any


class EmbeddingBagCollection:
    """Many tables, looked up feature by feature into one array by one call.

    Parameters
    ----------
    tables : mapping of str to ndarray, QuantizedTable or RemappedTable
        The tables, by name. Each is a table as for `embedding_bag`, of any dtype and width. A
        table that `embedding_bag` reads in place is read in place; any other is copied once.
    features : sequence of Feature
        The features, in the order of their columns in the result. Those of mode "none" have no
        columns.
    invalid : {"raise", "skip"}, optional
        What to do with ids out of range, of features that do not say. "raise" raises an
        IndexError. "skip" skips them like padding and counts them in `n_invalid`.

    Attributes
    ----------
    features : tuple of Feature
        The features.
    slices : mapping of str to slice
        The columns of each feature with bags in the result.
    dim : int
        The number of columns of the result: the sum of the widths of these features.
    invalid : str
        What happens to ids out of range.

    Raises
    ------
    TypeError
        If an argument has the wrong kind or dtype.
    ValueError
        If a name occurs twice or is not a key of `tables`, a table is not 2-D, or an option is
        unknown.

    See Also
    --------
    embedding_bag : Look up one table.

    Notes
    -----
    The columns of a feature have the bits that `embedding_bag` gives for it in float32. The
    entries of a float64 table are rounded to float32 as they are read. Any number of threads may
    call one collection at the same time, even while another replaces a table.

    Examples
    --------
    >>> import numpy as np
    >>> import embag
    >>> items = np.array([[0, 1], [10, 11], [20, 21]], np.float32)
    >>> countries = np.array([[1], [2]], np.float16)
    >>> ebc = embag.EmbeddingBagCollection(
    ...     {"items": items, "countries": countries},
    ...     [
    ...         embag.Feature("clicked", "items"),
    ...         embag.Feature("bought", "items", mode="mean"),
    ...         embag.Feature("country", "countries"),
    ...     ],
    ... )

    Two users, by name. Features have ids with offsets, or a row of ids for each user:

    >>> ebc(
    ...     {
    ...         "clicked": ([0, 1, 2], [0, 2]),
    ...         "bought": ([1, 2], [0, 0]),
    ...         "country": [[0], [1]],
    ...     }
    ... )
    array([[10., 12.,  0.,  0.,  1.],
           [20., 21., 15., 16.,  2.]], dtype=float32)

    The same ids end to end, with one more offset than bags:

    >>> out = ebc([0, 1, 2, 1, 2, 0, 1], [0, 2, 3, 3, 5, 6, 7])
    >>> out[:, ebc.slices["clicked"]]
    array([[10., 12.],
           [20., 21.]], dtype=float32)
    """

    def __init__(
        self,
        tables: Mapping[str, Table],
        features: Sequence[Feature],
        *,
        invalid: Invalid = "raise",
    ) -> None:
        if not isinstance(tables, Mapping):
            raise TypeError(f"tables must be a mapping, got {_arguments.describe(tables)}")
        tables = {
            name: vectors.as_array(table, f"tables[{name!r}]", kept=True)
            for name, table in tables.items()
        }
        encoded = {
            name: _encodings.as_table(table, f"tables[{name!r}]", kept=True).to_keep()
            for name, table in tables.items()
        }
        self.features = _as_features(features)
        self._pooled = tuple(feature for feature in self.features if _has_bags(feature))
        slices: dict[str, slice] = {}
        names: set[str] = set()
        self.dim = 0
        for feature in self.features:
            where = f"feature {feature.name!r}"
            if feature.name in names:
                raise ValueError(f"features must have different names, got two of {feature.name!r}")
            if feature.table not in encoded:
                raise ValueError(
                    f"{where}: table must be a key of tables, "
                    f"got {_arguments.describe(feature.table)}"
                )
            names.add(feature.name)
            with _arguments.prefix_errors(where):
                _arguments.check_flags(normalize=feature.normalize)
                if not _has_bags(feature):
                    _check_unpooled(feature)
                    continue
                _modes.as_mode(feature.mode, "none")
            dim = encoded[feature.table].dim
            slices[feature.name] = slice(self.dim, self.dim + dim)
            self.dim += dim
        if self.dim > _MOST_COLUMNS:
            raise ValueError(
                f"features must have at most {_MOST_COLUMNS} columns in all, got {self.dim}"
            )
        self.slices: Mapping[str, slice] = MappingProxyType(slices)
        self._takes_weights = all(
            _modes.MODES[feature.mode].takes_weights for feature in self._pooled
        )
        # Kernels do not read rows without columns, so ids of these are checked before.
        self._has_empty_rows = any(encoded[feature.table].dim == 0 for feature in self._pooled)
        self._has_unpooled = len(self._pooled) < len(self.features)
        self._is_plain = not (self._has_empty_rows or self._has_unpooled)
        self._mean_dim = self.dim // max(1, len(self._pooled))
        self._names = tuple(slices)
        _check_policy(invalid)
        self.invalid: Invalid = invalid
        refuses = invalid == "raise" and all(
            feature.invalid in (None, "raise") for feature in self._pooled
        )
        self._counts = None if refuses else np.zeros(len(self._pooled), np.int64)
        # An array for each feature: a kernel adds to it in one step.
        self._unpooled_counts = {
            feature.name: np.zeros(1, np.int64)
            for feature in self.features
            if not _has_bags(feature)
        }
        self._state = self._compile(tables, encoded)

    @property
    def tables(self) -> Mapping[str, Table]:
        """The current tables, read-only; see `replace`."""
        return self._state.tables

    @property
    def n_invalid(self) -> dict[str, int]:
        """How many ids of each feature were skipped or replaced since the collection was made."""
        counts = [0] * len(self._names) if self._counts is None else self._counts.tolist()
        found = dict(zip(self._names, counts, strict=True))
        found |= {name: int(count[0]) for name, count in self._unpooled_counts.items()}
        return {feature.name: found[feature.name] for feature in self.features}

    def replace(self, name: str, table: Table) -> None:
        """Replace one table, while other threads may be calling.

        A call reads the tables that it started with, so it never sees a mixture. The replaced table
        is released when the last call that reads it ends.

        Parameters
        ----------
        name : str
            The name of the table.
        table : ndarray, QuantizedTable or RemappedTable
            The new table. It has the same number of columns; its rows may be more or fewer, and its
            dtype another. It is read in place or copied once, as in the constructor.

        Raises
        ------
        TypeError
            If `name` is not a str, or `table` has the wrong kind or dtype.
        ValueError
            If `name` is not a key of `tables`, `table` has another number of columns, or the
            `padding_idx` of a feature is out of range for it. Nothing is replaced then.

        Notes
        -----
        To change several tables at once, make a new collection of them and pass that to the
        callers. A negative `padding_idx` of a feature counts from the end of the new table.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> ebc = embag.EmbeddingBagCollection(
        ...     {"items": np.zeros((2, 3), np.float32)}, [embag.Feature("clicked", "items")]
        ... )
        >>> ebc.replace("items", np.ones((5, 3), np.float32))
        >>> ebc({"clicked": [[0, 4]]})
        array([[2., 2., 2.]], dtype=float32)
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, got {_arguments.describe(name)}")
        if name not in self._state.tables:
            raise ValueError(f"name must be a key of tables, got {_arguments.describe(name)}")
        table = vectors.as_array(table, "table", kept=True)
        new = _encodings.as_table(table, "table", kept=True).to_keep()
        dim = self._state.encoded[name].dim
        if new.dim != dim:
            raise ValueError(
                f"table must have {dim} columns, like the table it replaces, got {new.dim}"
            )
        while True:
            now = self._state
            next_ = self._compile({**now.tables, name: table}, {**now.encoded, name: new})
            with _replacing:
                if self._state is now:  # no other thread has replaced a table in between
                    self._state = next_
                    return

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Save the collection in a folder, atomically.

        Parameters
        ----------
        folder : str or path-like
            The folder. It is made if it does not exist.

        Raises
        ------
        TypeError
            If `folder` has the wrong kind.
        ValueError
            If UTF-8 cannot encode a name.
        OSError
            If the folder cannot be written to. The save before is unchanged then.

        See Also
        --------
        load : Load the folder.
        save_table : How a table is written.

        Notes
        -----
        Each table gets a file of its own, with a new name at each save. Then the index,
        ``embag-collection.json``, is replaced, and then the files of the save before are deleted.
        So the folder holds a whole collection at any moment, even after a crash, and processes
        that have the old tables mapped keep them. Until the end, both saves take space.

        A process that is killed may leave files that the index does not name.

        Examples
        --------
        >>> import tempfile
        >>> import numpy as np
        >>> import embag
        >>> ebc = embag.EmbeddingBagCollection(
        ...     {"items": np.eye(3, dtype=np.float32)}, [embag.Feature("clicked", "items")]
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     ebc.save(folder)
        ...     loaded = embag.EmbeddingBagCollection.load(folder)
        >>> loaded({"clicked": [[0, 2]]})
        array([[1., 0., 1.]], dtype=float32)
        """
        _collection_files.save(
            folder, self.tables, [_as_record(feature) for feature in self.features], self.invalid
        )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        memory: Literal["map", "copy"] = "map",
        *,
        verify: bool = False,
    ) -> "EmbeddingBagCollection":
        """Load a collection that `save` wrote.

        Parameters
        ----------
        folder : str or path-like
            The folder.
        memory : {"map", "copy"}, optional
            "map": rows stay in the files and are read when lookups touch them; processes share
            them. "copy": rows are read into memory, and can be trained.
        verify : bool, optional
            If True, also read all files and compare their checksums, as `load_table` does.

        Returns
        -------
        EmbeddingBagCollection
            The collection, with the same tables, features and `invalid`.

        Raises
        ------
        TypeError
            If `folder` has the wrong kind.
        ValueError
            If `memory` is unknown, or the index or a table is invalid: truncated, malformed, of
            another program, or if they do not belong together.
        OSError
            If a file cannot be read, such as FileNotFoundError.
        ImportError
            If a table is of bfloat16 or 8-bit floats and ml_dtypes is not installed.
        MemoryError
            If there is not enough memory.

        See Also
        --------
        save : Save a collection.
        load_table : How a table is mapped or copied.

        Notes
        -----
        A save of another process at the same time does no harm: the result is the collection
        before it, or after it. Nothing in a file is executed, and the index can only name files in
        its own folder. A person may edit the index, for example to change `invalid` or the name
        of a feature.
        """
        check_memory(memory)
        _arguments.check_flags(verify=verify)
        path, tables, records, invalid = _collection_files.load(folder, memory, verify)
        with _collection_files.errors_of(path):
            features = []
            for i, record in enumerate(records):
                if not {"name", "table"} <= record.keys() <= set(Feature._fields):
                    raise ValueError(f"features[{i}] must have the fields of a Feature, got others")
                features.append(Feature(**record))
            return cls(tables, features, invalid=invalid)

    def _compile(self, tables: Mapping[str, Table], encoded: dict[str, _encodings.Table]) -> _State:
        """Return the state for some tables."""
        lookups, unpooled = [], []
        for feature in self.features:
            table = encoded[feature.table]
            invalid = self.invalid if feature.invalid is None else feature.invalid
            with _arguments.prefix_errors(f"feature {feature.name!r}"):
                whose: Any = table.n_rows, "the table's", table.first_id
                padding = _arguments.as_row(feature.padding_idx, "padding_idx", *whose)
                policy = _arguments.as_invalid(invalid, *whose)
                default = _arguments.as_row(feature.default_idx, "default_idx", *whose)
            normalizes = bool(feature.normalize)
            # The result is float32.
            table = table._replace(mapping=_in_float32(table.mapping))
            if _has_bags(feature):
                mode = _modes.MODES[feature.mode]
                lookups.append(_Lookup(table, mode, padding, *policy, default, normalizes))
            else:
                unpooled.append(Unpooled(feature.name, table, *policy, normalizes))
        compiled = tuple(
            (table.rows, table.code, table.dim, mode.code, *others, table.mapping, table.scales)
            for table, mode, *others in lookups
        )
        memory = tuple(array for table in tables.values() for array in _encodings.memory_of(table))
        return _State(
            MappingProxyType(dict(tables)),
            encoded,
            tuple(lookups),
            tuple(unpooled),
            kernels.Collection(compiled, memory, self._counts),
        )

    def __call__(
        self,
        values: "ArrayLike | Mapping[str, Any]",
        offsets: "ArrayLike | None" = None,
        per_sample_weights: "ArrayLike | Mapping[str, ArrayLike] | None" = None,
        *,
        include_last_offset: bool = False,
        out: NDArray[Any] | None = None,
        num_threads: int | None = None,
        return_n_valid: bool = False,
    ) -> Any:
        """Look up all features.

        Parameters
        ----------
        values : array_like of int, shape (n_indices,), mapping of str, or frame
            End to end: the ids of the first feature for the whole batch, then those of the
            second, and so on. By name: for each feature, ids of shape (batch, bag_size), a pair
            ``(ids, offsets)``, a ragged input as for `embedding_bag`, or a column of integers of
            Arrow, polars or pandas, with one id in each row, where a null is an empty bag. A frame
            has a column with the name of each feature; other columns are ignored, and so is the
            index of a pandas frame. With features of mode "none", `values` must be a mapping; the
            ids of these features may have any shape.
        offsets : array_like of int, shape (n_features * batch + 1,), optional
            End to end: where each bag starts, feature by feature, and where the last one ends.
            Must be None for a mapping or a frame.
        per_sample_weights : array_like, shape of `values`, or mapping of str, optional
            A factor for each gathered row. Not for features of mode "max", "min" or "none". By
            name: a mapping that may lack features.
        include_last_offset : bool, optional
            By name: if True, all offsets have one more entry, the end of the last bag.
        out : ndarray of float32, shape (batch, dim), optional
            The array to write the result to: C-contiguous, sharing no memory with any input.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.
        return_n_valid : bool, optional
            If True, also return how many ids count in each bag.

        Returns
        -------
        ndarray of float32, shape (batch, dim)
            The reduced features side by side: feature ``name`` is in the columns ``slices[name]``.
        unpooled : dict of str to ndarray of float32, shape ``ids.shape + (width,)``
            If there are features of mode "none": the rows of each, by name.
        n_valid : ndarray of int64, shape (batch, n_features)
            With `return_n_valid`: how many ids of each bag are neither padding nor skipped. It
            has no columns for features of mode "none".

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embedding_bag`; the message names the feature. A call that raises has not
            modified `out`, unless it is the RuntimeError.
        """
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        state = self._state  # read once: another thread may replace a table
        result: NDArray[np.float32] | None = None
        if not self._is_plain or return_n_valid is not False:
            pass
        elif type(values) is np.ndarray and type(offsets) is np.ndarray:
            if include_last_offset is False and (per_sample_weights is None or self._takes_weights):
                n_entries = (values.size + offsets.size) * self._mean_dim
                if threads.runs_alone(n_entries, num_threads):
                    # A direct call: a `Team` and `run` take 0.25 us.
                    result = state.compiled.pool(1, values, offsets, per_sample_weights, out)
                else:
                    team = threads.team_for(n_entries, num_threads)
                    result = threads.run(
                        state.compiled.pool, team, values, offsets, per_sample_weights, out
                    )
        elif type(values) is dict and offsets is out is None:
            result = self._pool_named(
                state, values, per_sample_weights, include_last_offset, num_threads
            )
        if result is not None:
            return result
        _arguments.check_flags(
            include_last_offset=include_last_offset, return_n_valid=return_n_valid
        )
        ids: list[NDArray[Any]] = []
        if self._has_unpooled:
            values, ids = self._take_unpooled(state, values, per_sample_weights)
            given_out: Any = out
            for feature, own in zip(state.unpooled, ids, strict=True):
                if _arguments.is_array(out) and _arguments.shares_memory(given_out, own):
                    raise ValueError(
                        f"out must share no memory with values[{feature.name!r}], got an overlap"
                    )
            if not (self._has_empty_rows or return_n_valid) and offsets is out is None:
                result = self._pool_named(
                    state, values, per_sample_weights, include_last_offset, num_threads
                )
        n_valid = None
        if result is None:
            result, n_valid = self._pool_any(
                *(state, values, offsets, per_sample_weights, include_last_offset),
                *(out, num_threads, return_n_valid),
            )
        if not self._has_unpooled:
            return result if n_valid is None else (result, n_valid)
        rows = {
            feature.name: feature.gather(own, self._unpooled_counts[feature.name], num_threads)
            for feature, own in zip(state.unpooled, ids, strict=True)
        }
        return (result, rows) if n_valid is None else (result, rows, n_valid)

    def _take_unpooled(
        self, state: _State, values: Any, per_sample_weights: Any
    ) -> tuple[dict[str, Any], list[NDArray[Any]]]:
        """Return the values of the features with bags, and the ids of the others, checked."""
        if not isinstance(values, Mapping):
            raise TypeError(
                f"values must be a mapping where feature {state.unpooled[0].name!r} has mode "
                f"'none', got {_arguments.describe(values)}"
            )
        rest, ids = dict(values), []
        for feature in state.unpooled:
            name = feature.name
            if isinstance(per_sample_weights, Mapping) and name in per_sample_weights:
                raise ValueError(
                    f"per_sample_weights must have no weights for feature {name!r} of mode "
                    f"'none', got {_arguments.describe(per_sample_weights[name])}"
                )
            if name not in rest:
                raise ValueError(f"values must have ids for every feature, got none for {name!r}")
            ids.append(feature.read(rest.pop(name)))
        return rest, ids

    def _pool_any(
        self,
        state: _State,
        values: Any,
        offsets: Any,
        per_sample_weights: Any,
        include_last_offset: bool,
        out: Any,
        num_threads: int | None,
        return_n_valid: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Look up the features with bags, for all arguments; see `_pool`."""
        calls, keys = self._calls(state, values, offsets, per_sample_weights, include_last_offset)
        return self._pool(state, calls, keys, out, num_threads, return_n_valid)

    def _calls(
        self,
        state: _State,
        values: Any,
        offsets: Any,
        per_sample_weights: Any,
        include_last_offset: bool,
    ) -> tuple[list[Call], list[str]]:
        """Return the call of each feature with bags, and the key of its ids in `values`."""
        named = values if isinstance(values, Mapping) else None
        if named is None and offsets is None:
            named = frames.read_columns(values, self._names, FEATURE_IDS.name)
        if named is not None:
            calls = self._calls_by_name(
                state, named, offsets, per_sample_weights, include_last_offset
            )
            return calls, [f"[{name!r}]" for name in self._names]
        if include_last_offset:
            raise ValueError("include_last_offset must be False where values is an array, got True")
        calls = self._calls_end_to_end(state, values, offsets, per_sample_weights)
        return calls, [""] * len(calls)

    def _pool_named(
        self,
        state: _State,
        values: dict[str, Any],
        per_sample_weights: Any,
        include_last_offset: bool,
        num_threads: int | None,
    ) -> NDArray[np.float32] | None:
        """Look up ids by name in compiled code; None if the call is not a common one."""
        gathered = state.compiled.gather_named(
            values, per_sample_weights, self._names, include_last_offset
        )
        if gathered is None:
            return None
        n_indices, inputs, bounds, samples, result = gathered
        team = self._team_for(n_indices, len(result) * len(inputs), num_threads)
        done = threads.run(
            state.compiled.pool_each,
            team,
            inputs,
            bounds,
            include_last_offset,
            samples,
            result,
        )
        return result if done else None

    def split(self, out: Any) -> dict[str, NDArray[Any]]:
        """Return the result of each feature.

        Parameters
        ----------
        out : ndarray, shape (..., dim), or tuple
            The result of a call: its array, or a tuple that begins with it and, if there are
            features of mode "none", the dict of their rows.

        Returns
        -------
        dict of str to ndarray
            By name of the feature: a view of the array, of shape (..., width of the feature), or
            the rows of a feature of mode "none", if `out` has them.

        Raises
        ------
        TypeError, ValueError
            If `out` is not the result of a call.
        """
        rows: Any = {}
        if isinstance(out, tuple) and len(out) > 1:
            out, rows = out[0], out[1] if self._has_unpooled else {}
            if not isinstance(rows, Mapping) or rows.keys() != self._unpooled_counts.keys():
                raise ValueError(
                    "out must have the rows of each feature of mode 'none', "
                    f"got {_arguments.describe(rows)}"
                )
        _arguments.check_array(out, "out")
        if out.shape[-1:] != (self.dim,):
            raise ValueError(f"out must have {self.dim} columns, got shape {out.shape}")
        parts = {name: out[..., columns] for name, columns in self.slices.items()} | dict(rows)
        return {
            feature.name: parts[feature.name] for feature in self.features if feature.name in parts
        }

    def backward(
        self,
        grad_output: Any,
        values: "ArrayLike | Mapping[str, Any]",
        offsets: "ArrayLike | None" = None,
        per_sample_weights: "ArrayLike | Mapping[str, ArrayLike] | None" = None,
        *,
        include_last_offset: bool = False,
        wrt: Literal["weight", "per_sample_weights"] | None = None,
        num_threads: int | None = None,
    ) -> EmbeddingBagGrads:
        """Return the gradients of the tables, given the gradient of the output.

        Parameters
        ----------
        grad_output : array_like, shape (batch, dim), or tuple
            The gradient of the output. If there are features of mode "none", a pair: the gradient
            of the array, and a mapping with that of the rows of each of these features.
        values, offsets, per_sample_weights, include_last_offset
            As in the call.
        wrt : {"weight", "per_sample_weights"}, optional
            The only gradients to compute. By default both are computed.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.

        Returns
        -------
        weight : dict of str to SparseRows
            By name: the gradient of each table that features look up, in the dtype of its sums.
            Where features share a table it is the sum of their gradients, in the order of
            features.
        per_sample_weights : dict of str to ndarray
            By feature, for those with weights: see `embedding_bag_backward`.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `embedding_bag_backward`; the message names the feature. A table must be one that
            has gradients.

        See Also
        --------
        update : Change the tables.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> tables = {"items": np.zeros((4, 2), np.float32)}
        >>> features = [embag.Feature("clicked", "items"), embag.Feature("bought", "items")]
        >>> ebc = embag.EmbeddingBagCollection(tables, features)
        >>> grads = ebc.backward(np.ones((1, 4)), {"clicked": [[1, 2]], "bought": [[2]]})
        >>> grads.weight["items"].indices, grads.weight["items"].values
        (array([1, 2]), array([[1., 1.],
               [2., 2.]], dtype=float32))
        """
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        state = self._state
        parts = self._parts(
            state, grad_output, values, offsets, per_sample_weights, include_last_offset
        )
        _check_wrt(wrt, parts)
        return gradients(parts, state.tables, wrt, "sparse", num_threads)

    def update(
        self,
        grad_output: Any,
        values: "ArrayLike | Mapping[str, Any]",
        offsets: "ArrayLike | None" = None,
        per_sample_weights: "ArrayLike | Mapping[str, ArrayLike] | None" = None,
        *,
        optimizers: Mapping[str, Optimizer],
        include_last_offset: bool = False,
        wrt: Literal["weight"] | None = "weight",
        num_threads: int | None = None,
    ) -> dict[str, NDArray[Any]] | None:
        """Compute the gradients of the tables, and change the tables by them, all at once.

        Parameters
        ----------
        grad_output : array_like, shape (batch, dim), or tuple
            The gradient of the output: see `backward`.
        values, offsets, per_sample_weights, include_last_offset
            As in the call.
        optimizers : mapping of str to Optimizer
            By name of the table: an optimizer that was made for the table of this collection, of
            `embag.optim`. Other tables do not change.
        wrt : {"weight", None}, optional
            None also returns the gradients of the weights.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.

        Returns
        -------
        dict of str to ndarray, or None
            With ``wrt=None``: by feature, the gradients of the weights of the features whose tables
            change.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As in `backward` and `embag.optim.Optimizer.step`. No table has changed then, unless it
            is a RuntimeError for arrays that another thread changed.

        Notes
        -----
        The bits are those of a step of each optimizer with the gradient that `backward` returns.
        The gradient of a table of one feature is never in memory; where features share a table,
        that of each feature is. Calls of the collection during an update may read rows that are
        partly changed.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> items = np.zeros((4, 2), np.float32)
        >>> ebc = embag.EmbeddingBagCollection({"items": items}, [embag.Feature("seen", "items")])
        >>> optimizers = {"items": embag.optim.SGD(items, lr=0.5)}
        >>> ebc.update(np.ones((1, 2)), {"seen": [[1, 3]]}, optimizers=optimizers)
        >>> items[:, 0]
        array([ 0. , -0.5,  0. , -0.5], dtype=float32)
        """
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        if wrt not in ("weight", None):
            raise ValueError(f"wrt must be 'weight' or None, got {_arguments.describe(wrt)}")
        state = self._state
        _check_optimizers(optimizers, state.tables)
        parts = self._parts(
            state, grad_output, values, offsets, per_sample_weights, include_last_offset
        )
        for part in parts:
            if part.table not in optimizers:
                with _arguments.prefix_errors(f"feature {part.name!r}"):
                    part.call.check()
        parts = [part for part in parts if part.table in optimizers]
        grads = gradients(parts, state.tables, wrt, "terms", num_threads)
        steps = [(optimizers[name], grad) for name, grad in grads.weight.items()]
        try:
            done = step_together(steps, num_threads)
        except (TypeError, ValueError):
            for name in grads.weight:
                with _arguments.prefix_errors(f"optimizers[{name!r}]"):
                    optimizers[name]._arrays()
            raise
        if not done:
            for part in parts:
                with _arguments.prefix_errors(f"feature {part.name!r}"):
                    part.call.check()
            _arguments.raise_for_change()
        return grads.per_sample_weights if wrt is None else None

    def _parts(
        self,
        state: _State,
        grad_output: Any,
        values: Any,
        offsets: Any,
        per_sample_weights: Any,
        include_last_offset: bool,
    ) -> list[Part]:
        """Return the lookup of each feature and the gradient of its output."""
        calls, ids = self._read(state, values, offsets, per_sample_weights, include_last_offset)
        shapes = {
            feature.name: (*own.shape, feature.table.dim)
            for feature, own in zip(state.unpooled, ids, strict=True)
        }
        shape = (calls[0].bags.n_bags if calls else 0, self.dim)
        pooled, rows = split_grad_output(grad_output, shape, shapes)
        found = {
            name: (call, pooled[:, self.slices[name]])
            for name, call in zip(self._names, calls, strict=True)
        }
        tables = {feature.name: feature.table for feature in self.features}
        for feature, own in zip(state.unpooled, ids, strict=True):
            with _arguments.prefix_errors(f"feature {feature.name!r}"):
                call = feature.call(own, state.tables[tables[feature.name]])
            found[feature.name] = call, rows[feature.name].reshape(own.size, feature.table.dim)
        return [
            Part(feature.name, feature.table, *found[feature.name]) for feature in self.features
        ]

    def _read(
        self,
        state: _State,
        values: Any,
        offsets: Any,
        per_sample_weights: Any,
        include_last_offset: bool,
    ) -> tuple[list[Call], list[NDArray[Any]]]:
        """Return the call of each feature with bags, and the ids of each feature without."""
        _arguments.check_flags(include_last_offset=include_last_offset)
        ids: list[NDArray[Any]] = []
        if self._has_unpooled:
            values, ids = self._take_unpooled(state, values, per_sample_weights)
        calls, _ = self._calls(state, values, offsets, per_sample_weights, include_last_offset)
        return calls, ids

    def _team_for(self, n_indices: int, n_bags: int, num_threads: int | None) -> threads.Team:
        return threads.team_for((n_indices + n_bags) * self._mean_dim, num_threads)

    def _calls_by_name(
        self,
        state: _State,
        values: Mapping[str, Any],
        offsets: Any,
        per_sample_weights: Any,
        include_last_offset: bool,
    ) -> list[Call]:
        """Return the call of each feature; `values` is a mapping."""
        if offsets is not None:
            raise ValueError(
                f"offsets must be None where values is a mapping, "
                f"got {_arguments.describe(offsets)}"
            )
        weights = {} if per_sample_weights is None else per_sample_weights
        if not isinstance(weights, Mapping):
            raise TypeError(
                "per_sample_weights must be a mapping where values is one, "
                f"got {_arguments.describe(weights)}"
            )
        self._check_keys(values, "values")
        self._check_keys(weights, "per_sample_weights")
        calls: list[Call] = []
        for name, lookup in zip(self._names, state.lookups, strict=True):
            if name not in values:
                raise ValueError(f"values must have ids for every feature, got none for {name!r}")
            given, given_offsets = _split_pair(values[name], name)
            with _arguments.prefix_errors(f"feature {name!r}"):
                bags = as_bags(given, given_offsets, None, include_last_offset, FEATURE_IDS)
                bags, sample = add_weights(
                    *(bags, weights.get(name), lookup.mode),
                    lookup.table.first_id + lookup.table.n_rows,
                    _FLOAT32,
                )
            if calls and bags.n_bags != calls[0].bags.n_bags:
                raise ValueError(
                    f"values must have the same number of bags for every feature, "
                    f"got {calls[0].bags.n_bags} for {self._names[0]!r} "
                    f"and {bags.n_bags} for {name!r}"
                )
            calls.append(lookup.call(bags, sample, weights.get(name)))
        return calls

    def _check_keys(self, mapping: Mapping[str, Any], argument: str) -> None:
        """Raise unless every key names a feature."""
        for name in mapping:
            if name not in self.slices:
                raise ValueError(
                    f"{argument} must have names of features as keys, "
                    f"got {_arguments.describe(name)}"
                )

    def _calls_end_to_end(
        self, state: _State, given: Any, given_offsets: Any, per_sample_weights: Any
    ) -> list[Call]:
        """Return the call of each feature; `values` is an array of the ids of all."""
        if given_offsets is None:
            raise ValueError("offsets must be given where values is an array, got None")
        indices = _arguments.as_index_array(given, "values")
        # A copy, which nothing can change between the check and the cut.
        offsets = _arguments.as_index_array(given_offsets, "offsets").astype(np.int64)
        if indices.ndim != 1:
            raise ValueError(f"values must be 1-D, got shape {indices.shape}")
        n_bags = _count_bags(offsets, len(self._names))
        sample = None
        if per_sample_weights is not None:
            self._check_weighted(per_sample_weights)
            sample = _arguments.as_sample_weights(per_sample_weights, indices, _FLOAT32, "values'")
        i = kernels.first_bad_offset(offsets, len(indices))
        if i >= 0:
            place = f"feature {self._names[(i - 1) // n_bags]!r}" if i > 0 else ""
            with _arguments.prefix_errors(place):
                _arguments.check_offsets(offsets, len(indices), given_offsets, "values")
        calls = []
        for f, lookup in enumerate(state.lookups):
            bounds = offsets[f * n_bags : (f + 1) * n_bags + 1]
            start, stop = int(bounds[0]), int(bounds[-1])
            bags = ArrayBags(
                indices[start:stop],
                bounds - start,
                includes_last=True,
                n_bags=n_bags,
                label=VALUES,
                given=given,
                given_offsets=given_offsets,
                start=start,
            )
            weights = None if sample is None else sample[start:stop]
            calls.append(lookup.call(bags, weights, per_sample_weights))
        return calls

    def _check_weighted(self, per_sample_weights: Any) -> None:
        """Raise unless an array of weights can be used by every feature."""
        if isinstance(per_sample_weights, Mapping):
            raise TypeError(
                "per_sample_weights must be an array where values is one, "
                f"got {_arguments.describe(per_sample_weights)}"
            )
        for feature in self._pooled:
            if not _modes.MODES[feature.mode].takes_weights:
                raise ValueError(
                    f"per_sample_weights must be None where feature {feature.name!r} "
                    f"has mode {feature.mode!r}, got "
                    f"{_arguments.describe(per_sample_weights)}"
                )

    def _pool(
        self,
        state: _State,
        calls: list[Call],
        keys: list[str],
        out: Any,
        num_threads: int | None,
        counts_valid: bool,
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Run the calls of all features, into one array; and count the entries that count."""
        shape = (calls[0].bags.n_bags if calls else 0, self.dim)
        n_valid = np.zeros((shape[0], len(calls)), np.int64) if counts_valid else None
        if out is None:
            result = _arguments.new_array(np.empty, shape, _FLOAT32)
        else:
            names, inputs = _list_memory(state, calls, keys)
            _arguments.check_out(out, shape, _FLOAT32, names, inputs)
            result = out
        is_ragged = any(type(call.bags) is Column for call in calls)
        if is_ragged:
            calls = self._as_columns(calls)
        # A call that raises writes nothing and counts no ids.
        if out is not None or self._has_empty_rows or (is_ragged and self._counts is not None):
            self._check(calls)
            for _ in self._pieces(calls):
                pass
        bounds_kind = calls[0].bags.bounds_kind if calls else 0
        for pieces in self._pieces(calls):
            bags = slice(pieces[0].start, pieces[0].start + pieces[0].n)
            n_indices = sum(piece.n_used for piece in pieces)
            team = self._team_for(n_indices, pieces[0].n * len(pieces), num_threads)
            counts = np.zeros((len(pieces), pieces[0].n), np.int64) if counts_valid else None
            done = threads.run(
                state.compiled.pool_each,
                team,
                tuple(piece.indices for piece in pieces),
                tuple(piece.offsets for piece in pieces),
                bounds_kind,
                tuple(piece.sample for piece in pieces),
                result[bags],
                counts,
            )
            if not done:
                self._check(calls)
                _arguments.raise_for_change()
            if n_valid is not None and counts is not None:
                n_valid[bags] = counts.T
        return result, n_valid

    def _as_columns(self, calls: list[Call]) -> list[Call]:
        """Return the calls with ragged bags only: arrays become columns."""
        columns = []
        for name, call in zip(self._names, calls, strict=True):
            if type(call.bags) is Column:
                columns.append(call)
                continue
            with _arguments.prefix_errors(f"feature {name!r}"):
                arrays: Any = call.bags
                bags, weights = arrays.as_columns(call.weights)
            columns.append(dataclasses.replace(call, bags=bags, weights=weights))
        return columns

    def _pieces(self, calls: list[Call]) -> Iterator[list[Piece]]:
        """Yield what the kernels read at once: the same bags of every feature."""
        if not any(type(call.bags) is Column for call in calls):
            if calls:
                yield [piece for call in calls for piece in call.pieces()]
            return
        ids: list[Any] = [call.bags for call in calls]
        samples: list[Any] = [call.weights for call in calls if call.weights is not None]
        start = 0
        for chunks in zip_chunks(ids + samples):
            of_samples = iter(chunks[len(ids) :])
            pieces = []
            for name, call, chunk in zip(self._names, calls, chunks[: len(ids)], strict=True):
                factors = None if call.weights is None else next(of_samples)
                column: Any = call.bags
                with _arguments.prefix_errors(f"feature {name!r}"):
                    pieces.append(column.piece(start, chunk, factors, _FLOAT32))
            yield pieces
            start += chunks[0].n

    def _check(self, calls: list[Call]) -> None:
        """Raise for the first invalid offset or id, feature by feature."""
        for name, call in zip(self._names, calls, strict=True):
            with _arguments.prefix_errors(f"feature {name!r}"):
                call.check()

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(EmbeddingBagCollection, invalid=self.invalid)
        return make, (dict(self.tables), self.features)

    def __repr__(self) -> str:
        return (
            f"EmbeddingBagCollection({len(self.tables)} tables, "
            f"{len(self.features)} features, dim={self.dim})"
        )


def _as_record(feature: Feature) -> dict[str, Any]:
    """Return the fields of a feature that are not defaults, and its mode."""
    fields = feature._asdict() | {"normalize": bool(feature.normalize)}
    defaults = Feature._field_defaults
    return {
        name: value
        for name, value in fields.items()
        if name == "mode" or name not in defaults or value != defaults[name]
    }


def _has_bags(feature: Feature) -> bool:
    return type(feature.mode) is not str or feature.mode != "none"


def _check_unpooled(feature: Feature) -> None:
    if feature.default_idx is not None:
        raise ValueError(
            "default_idx must be None where mode is 'none', "
            f"got {_arguments.describe(feature.default_idx)}"
        )


def _check_optimizers(optimizers: Any, tables: Mapping[str, Table]) -> None:
    """Raise unless these are different optimizers of these tables."""
    if not isinstance(optimizers, Mapping):
        raise TypeError(f"optimizers must be a mapping, got {_arguments.describe(optimizers)}")
    owners: dict[int, str] = {}
    for name, optimizer in optimizers.items():
        if name not in tables:
            raise ValueError(
                f"optimizers must have names of tables as keys, got {_arguments.describe(name)}"
            )
        if not issubclass(type(optimizer), Optimizer):
            raise TypeError(
                f"optimizers[{name!r}] must be an Optimizer, got {_arguments.describe(optimizer)}"
            )
        if optimizer.table is not tables[name]:
            raise ValueError(
                f"optimizers[{name!r}] must be made for the collection's table {name!r}, "
                f"got one of another table: {optimizer!r}"
            )
        other = owners.setdefault(id(optimizer), name)
        if other != name:
            raise ValueError(
                f"optimizers must be different for each table, got one for {other!r} and {name!r}"
            )


def _check_wrt(wrt: Any, parts: list[Part]) -> None:
    weighted: list[Any] = [part.call.weights for part in parts if part.call.weights is not None]
    _arguments.check_wrt(wrt, weighted[0] if weighted else None)


def _split_pair(given: Any, name: str) -> tuple[Any, Any]:
    """Return the ids and the offsets of a feature that come by its name."""
    if not isinstance(given, tuple):
        return given, None
    if len(given) != 2:
        raise ValueError(
            f"values[{name!r}] must be ids or a pair (ids, offsets), got a tuple of {len(given)}"
        )
    return given


def _count_bags(offsets: NDArray[np.int64], n_features: int) -> int:
    """Return the number of bags of each feature, end to end."""
    if n_features == 0 and offsets.shape != (1,):
        raise ValueError(
            f"offsets must have shape (1,) where there are no features, got {offsets.shape}"
        )
    if offsets.ndim != 1 or len(offsets) == 0 or (len(offsets) - 1) % max(1, n_features):
        raise ValueError(
            f"offsets must be 1-D with n_features * batch + 1 entries where there are "
            f"{n_features} features, got shape {offsets.shape}"
        )
    return (len(offsets) - 1) // max(1, n_features)


def _list_memory(state: _State, calls: list[Call], keys: list[str]) -> tuple[list[str], list[Any]]:
    """Return the names and the arrays that `out` must share no memory with."""
    memory: list[tuple[str, Any]] = [
        (f"tables[{name!r}]", array)
        for name, table in state.tables.items()
        for array in _encodings.memory_of(table)
    ]
    for call, key in zip(calls, keys, strict=True):
        ids = f"values{key}"
        names = {
            "ids": ids,
            "offsets": ids if key else "offsets",  # by name, ids and offsets are a pair
            "weights": f"per_sample_weights{key}",
        }
        memory += [(names[role], array) for role, array in call.memory()]
    return [name for name, _ in memory], [array for _, array in memory]


def _in_float32(mapping: _encodings.Mapping | None) -> _encodings.Mapping | None:
    """Return how ids are mapped, with scales in the dtype of the result."""
    if mapping is None or mapping.scales is None:
        return mapping
    return mapping._replace(scales=_arguments.cast(mapping.scales, _FLOAT32))


def _check_policy(invalid: Any) -> None:
    if type(invalid) is not str or invalid not in ("raise", "skip"):
        raise ValueError(f"invalid must be 'raise' or 'skip', got {_arguments.describe(invalid)}")


def _as_features(features: Any) -> tuple[Feature, ...]:
    describe = _arguments.describe
    try:
        if isinstance(features, Feature):
            raise TypeError
        each = iter(features)
    except (TypeError, NotImplementedError):  # the latter for a memoryview with two axes
        raise TypeError(
            f"features must be a sequence of Feature, got {describe(features)}"
        ) from None
    taken = []
    for i, feature in enumerate(each):
        if not isinstance(feature, Feature):
            raise TypeError(f"features[{i}] must be a Feature, got {describe(feature)}")
        for field in ("name", "table"):
            value = getattr(feature, field)
            if not isinstance(value, str):
                raise TypeError(f"features[{i}]: {field} must be a str, got {describe(value)}")
        taken.append(feature)
    return tuple(taken)


def _after_fork_in_child() -> None:
    global _replacing  # noqa: PLW0603
    _replacing = threading.RLock()  # a thread of the parent may have held the old one


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

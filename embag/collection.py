"""`EmbeddingBagCollection`: many tables, many features, one call.

A request of a recommender looks up some 26 features. One call checks its arguments once,
releases the GIL once, and asks for the rows of later features while it adds up those of
earlier ones (_collection.pxi).

The common case goes straight to compiled code, which returns None for anything unusual:
then the arguments are converted, or blamed, here.

Tested in tests/test_collection.py.
"""

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _containers, _encodings, _ragged, _threads
from embag._dispatch import kernels
from embag.functional import Invalid, Mode
from embag.quantized import QuantizedTable

AnyTable: TypeAlias = NDArray[Any] | QuantizedTable

_FLOAT32 = np.dtype(np.float32)

# Of the one step that replaces what a collection reads. A signal's handler may replace, too.
_replacing = threading.RLock()

_MOST_COLUMNS = sys.maxsize // 64  # their bits can be counted in a Py_ssize_t


class Feature(NamedTuple):
    """A feature: the table that its ids are looked up in, and how they are reduced.

    Parameters
    ----------
    name : str
        Its name, for `EmbeddingBagCollection.slices` and in messages.
    table : str
        The name of its table. Features may share one.
    mode : {"sum", "mean", "max"}, optional
        The reduction.
    padding_idx : int, optional
        A row, which may be counted from the end, that is left out.

    Examples
    --------
    >>> import embag
    >>> embag.Feature("clicked", "items", mode="mean")
    Feature(name='clicked', table='items', mode='mean', padding_idx=None)
    """

    name: str
    table: str
    mode: Mode = "sum"
    padding_idx: int | None = None


class _Part(NamedTuple):
    """What a call brings for one feature, checked but for the values of its integers."""

    input: Any  # an array, or a ragged column
    offsets: NDArray[Any] | None
    sample: Any
    n_bags: int
    # As the caller knows it, for messages: what input is called, where it starts, the key
    # of the feature in mappings, and the arrays before conversion.
    name: str
    start: int
    key: str
    given: Any
    given_offsets: Any
    given_sample: Any


class _State(NamedTuple):
    """All that depends on the tables. Never changed: `replace` makes another."""

    tables: Mapping[str, AnyTable]
    encoded: dict[str, _encodings.Table]
    n_rows: tuple[int, ...]  # for each feature
    compiled: Any


class EmbeddingBagCollection:
    """Many tables, pooled feature by feature into one array by one call.

    Parameters
    ----------
    tables : mapping of str to ndarray or QuantizedTable
        The tables, each of any kind that `embedding_bag` takes, of any dtype and width.
        They are read in place where `embedding_bag` would, else copied once.
    features : sequence of Feature
        The features, in the order of their columns in the result.
    invalid : {"raise", "skip"}, optional
        What is done about ids that are no rows of their table. "raise": IndexError. "skip":
        they are left out, as padding is, and counted in `n_invalid`.

    Attributes
    ----------
    features : tuple of Feature
        The features.
    slices : mapping of str to slice
        The columns of each feature in the result.
    dim : int
        The columns of the result: the sum of the features' widths.
    invalid : str
        What is done about ids that are no rows of their table.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind or dtype.
    ValueError
        If a name occurs twice or names no table, a table is not 2-D, or an option is none.

    See Also
    --------
    embedding_bag : one table.

    Notes
    -----
    Each feature's columns hold what `embedding_bag` gives for it in float32, bit for bit;
    of a float64 table each entry is rounded to float32 as it is read. Any number of threads
    may call one collection, also while another replaces a table.

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

    Two users. By name, ids with offsets or a row of ids for each user:

    >>> ebc(
    ...     {
    ...         "clicked": ([0, 1, 2], [0, 2]),
    ...         "bought": ([1, 2], [0, 0]),
    ...         "country": [[0], [1]],
    ...     }
    ... )
    array([[10., 12.,  0.,  0.,  1.],
           [20., 21., 15., 16.,  2.]], dtype=float32)

    The same ids end to end, feature by feature, with one offset more than there are bags:

    >>> out = ebc([0, 1, 2, 1, 2, 0, 1], [0, 2, 3, 3, 5, 6, 7])
    >>> out[:, ebc.slices["clicked"]]
    array([[10., 12.],
           [20., 21.]], dtype=float32)
    """

    def __init__(
        self,
        tables: Mapping[str, AnyTable],
        features: Sequence[Feature],
        *,
        invalid: Invalid = "raise",
    ) -> None:
        if not isinstance(tables, Mapping):
            raise TypeError(f"tables must be a mapping, got {_arguments.describe(tables)}")
        tables = dict(tables)
        encoded = {
            name: _encodings.as_table(table, f"tables[{name!r}]") for name, table in tables.items()
        }
        self.features = _as_features(features)
        slices: dict[str, slice] = {}
        self.dim = 0
        for feature in self.features:
            where = f"feature {feature.name!r}"
            if feature.name in slices:
                raise ValueError(f"features must have different names, got two of {feature.name!r}")
            if feature.table not in encoded:
                raise ValueError(
                    f"{where}: table must be a key of tables, "
                    f"got {_arguments.describe(feature.table)}"
                )
            with _arguments.where(where):
                _arguments.check_mode(feature.mode, False, False)
            dim = encoded[feature.table].dim
            slices[feature.name] = slice(self.dim, self.dim + dim)
            self.dim += dim
        if self.dim > _MOST_COLUMNS:
            raise ValueError(
                f"features must have at most {_MOST_COLUMNS} columns in all, got {self.dim}"
            )
        self.slices: Mapping[str, slice] = MappingProxyType(slices)
        self._takes_weights = all(feature.mode == "sum" for feature in self.features)
        # Rows of no columns are not read, so their ids are checked beforehand.
        self._has_empty_rows = any(encoded[feature.table].dim == 0 for feature in self.features)
        self._mean_dim = self.dim // max(1, len(self.features))
        self._names = tuple(slices)
        self._no_weights = (None,) * len(slices)
        _arguments.check_invalid(invalid)
        self.invalid: Invalid = invalid
        self._counts = np.zeros(len(self.features), np.int64) if invalid == "skip" else None
        self._state = self._compile(tables, encoded)

    @property
    def tables(self) -> Mapping[str, AnyTable]:
        """The tables as they are now, read-only; see `replace`."""
        return self._state.tables

    @property
    def n_invalid(self) -> dict[str, int]:
        """How many ids of each feature were left out since the collection was made."""
        counts = [0] * len(self._names) if self._counts is None else self._counts.tolist()
        return dict(zip(self._names, counts, strict=True))

    def replace(self, name: str, table: AnyTable) -> None:
        """Put another table in the place of one, while other threads go on calling.

        Every call reads the tables that it started with, so none sees a mixture. The one
        that was replaced is let go when the last call that reads it ends.

        Parameters
        ----------
        name : str
            The table's name.
        table : ndarray or QuantizedTable
            The new one, with as many columns; its rows may be more or fewer, and of another
            dtype. Read in place, or copied once, as in the constructor.

        Raises
        ------
        TypeError
            If `name` is no str or `table` of the wrong kind or dtype.
        ValueError
            If `name` names no table, the new one has another number of columns, or a
            feature's `padding_idx` is no row of it. Nothing is replaced then.

        Notes
        -----
        To change several tables at once, make a new collection of them and hand that to
        the callers. A feature's `padding_idx` that is negative counts from the end of the
        new table.

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
        new = _encodings.as_table(table, "table")
        dim = self._state.encoded[name].dim
        if new.dim != dim:
            raise ValueError(
                f"table must have {dim} columns, as the one that it replaces, got {new.dim}"
            )
        while True:
            now = self._state
            next_ = self._compile({**now.tables, name: table}, {**now.encoded, name: new})
            with _replacing:
                if self._state is now:  # nobody has replaced another table meanwhile
                    self._state = next_
                    return

    def _compile(
        self, tables: Mapping[str, AnyTable], encoded: dict[str, _encodings.Table]
    ) -> _State:
        """Make all that depends on the tables."""
        compiled = []
        for feature in self.features:
            table = encoded[feature.table]
            padding = -1
            if feature.padding_idx is not None:
                with _arguments.where(f"feature {feature.name!r}"):
                    padding = _arguments.as_padding_row(
                        feature.padding_idx, len(table.rows), "the table's"
                    )
            compiled.append((table.rows, table.encoding, table.dim, feature.mode, padding))
        memory = tuple(_memory_of(table) for table in tables.values())
        return _State(
            MappingProxyType(dict(tables)),
            encoded,
            tuple(len(rows) for rows, *_ in compiled),
            kernels.Collection(tuple(compiled), memory, self._counts),
        )

    def __call__(
        self,
        values: ArrayLike | Mapping[str, Any],
        offsets: ArrayLike | None = None,
        per_sample_weights: ArrayLike | Mapping[str, ArrayLike] | None = None,
        *,
        include_last_offset: bool = False,
        out: NDArray[Any] | None = None,
        num_threads: int | None = None,
    ) -> NDArray[np.float32]:
        """Pool all features.

        Parameters
        ----------
        values : array_like of int, shape (n_indices,), or mapping of str
            The ids of all features end to end: those of the first feature for the whole
            batch, then those of the second, and so on. Or by feature, each either ids of
            shape (batch, bag_size), a pair ``(ids, offsets)`` or a ragged column, as for
            `embedding_bag`.
        offsets : array_like of int, shape (n_features * batch + 1,), optional
            Where each bag starts, feature by feature, and where the last one ends. Not
            with a mapping.
        per_sample_weights : array_like, shape of `values`, or mapping of str, optional
            Factors for the rows; with a mapping of ids, a mapping from those features that
            have some. Only for features of mode "sum".
        include_last_offset : bool, optional
            With a mapping: offsets have one entry more, where the last bag ends.
        out : ndarray of float32, shape (batch, dim), optional
            Where to put the result: C-contiguous, apart from all inputs.
        num_threads : int, optional
            The most threads for this call, in the place of `get_num_threads`.

        Returns
        -------
        ndarray of float32, shape (batch, dim)
            The pooled features side by side, each in the columns `slices` of its name.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As `embedding_bag`; the message names the feature. A call that raises has not
            touched `out`, unless it is the RuntimeError.
        """
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        state = self._state  # read once: another thread may replace a table meanwhile
        if (
            type(values) is np.ndarray
            and type(offsets) is np.ndarray
            and include_last_offset is False
            and (per_sample_weights is None or self._takes_weights)
            and not self._has_empty_rows
        ):
            n_threads = self._threads_for(values.size, offsets.size, num_threads)
            result: NDArray[np.float32] | None
            if n_threads == 1:  # not by way of a method that is bound first: 0.1 us
                result = state.compiled.pool(1, values, offsets, per_sample_weights, out)
            else:
                arguments = values, offsets, per_sample_weights, out
                result = _threads.run(state.compiled.pool, n_threads, *arguments)
            if result is not None:
                return result
        elif (
            type(values) is dict
            and include_last_offset is False
            and offsets is per_sample_weights is out is None
            and not self._has_empty_rows
        ):
            gathered = state.compiled.gather_named(values, self._names)
            if gathered is not None:
                n_indices, inputs, bounds, result = gathered
                n_bags = len(result) * len(inputs)
                n_threads = self._threads_for(n_indices, n_bags, num_threads)
                each = inputs, bounds, False, self._no_weights, result
                if _threads.run(state.compiled.pool_each, n_threads, *each):
                    return result
        _arguments.check_flags(include_last_offset=include_last_offset)
        if isinstance(values, Mapping):
            parts = self._parts_by_name(values, offsets, per_sample_weights, include_last_offset)
        else:
            if include_last_offset:
                raise ValueError(
                    "include_last_offset must be False where values is an array, got True"
                )
            parts = self._parts_end_to_end(values, offsets, per_sample_weights)
            include_last_offset = True  # each part tells where its last bag ends
        return self._pool_parts(state, parts, include_last_offset, out, num_threads)

    def split(self, out: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the columns of each feature.

        Parameters
        ----------
        out : ndarray, shape (..., dim)
            A result.

        Returns
        -------
        dict of str to ndarray
            Views of `out`, of shape (..., the feature's width).
        """
        _arguments.check_array(out, "out")
        if out.shape[-1:] != (self.dim,):
            raise ValueError(f"out must have {self.dim} columns, got shape {out.shape}")
        return {name: out[..., columns] for name, columns in self.slices.items()}

    def _threads_for(self, n_indices: int, n_bags: int, num_threads: int | None) -> int:
        return _threads.threads_for((n_indices + n_bags) * self._mean_dim, num_threads)

    def _parts_by_name(
        self,
        values: Mapping[str, Any],
        offsets: Any,
        per_sample_weights: Any,
        include_last_offset: bool,
    ) -> list[_Part]:
        """Take the arrays of a call by name."""
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
        for argument, mapping in (("values", values), ("per_sample_weights", weights)):
            for name in mapping:
                if name not in self.slices:
                    raise ValueError(
                        f"{argument} must have names of features as keys, "
                        f"got {_arguments.describe(name)}"
                    )
        parts: list[_Part] = []
        for feature in self.features:
            name = feature.name
            if name not in values:
                raise ValueError(f"values must have ids for every feature, got none for {name!r}")
            given, given_offsets = values[name], None
            if isinstance(given, tuple):
                if len(given) != 2:
                    raise ValueError(
                        f"values[{name!r}] must be ids or a pair (ids, offsets), "
                        f"got a tuple of {len(given)}"
                    )
                given, given_offsets = given
            given_sample = weights.get(name)
            as_given = given, given_offsets, given_sample
            with _arguments.where(f"feature {name!r}"):
                indices = _containers.as_input(given, "ids")
                if given_sample is not None and not _containers.is_plain(given_sample):
                    indices, given_sample = _containers.alike(
                        indices, given_sample, feature.mode, "ids"
                    )
                if type(indices) is _ragged.Column:
                    bounds, n_bags = None, indices.n_bags
                    _containers.check_alone(given_offsets, None)
                    sample: Any = _containers.as_weights(
                        given_sample, indices, feature.mode, _FLOAT32
                    )
                else:
                    bounds, sample, n_bags = _as_arrays(
                        indices, given_offsets, given_sample, feature.mode, include_last_offset
                    )
            if parts and n_bags != parts[0].n_bags:
                raise ValueError(
                    f"values must have the same number of bags for every feature, "
                    f"got {parts[0].n_bags} for {self.features[0].name!r} "
                    f"and {n_bags} for {name!r}"
                )
            parts.append(_Part(indices, bounds, sample, n_bags, "ids", 0, f"[{name!r}]", *as_given))
        return parts

    def _parts_end_to_end(
        self, given: Any, given_offsets: Any, per_sample_weights: Any
    ) -> list[_Part]:
        """Cut the arrays of a call with all ids end to end."""
        if given_offsets is None:
            raise ValueError("offsets must be given where values is an array, got None")
        indices = _arguments.as_index_array(given, "values")
        # A copy: nothing can change between the check and the cut.
        offsets = _arguments.as_index_array(given_offsets, "offsets").astype(np.int64)
        if indices.ndim != 1:
            raise ValueError(f"values must be 1-D, got shape {indices.shape}")
        n_features = len(self.features)
        if n_features == 0 and offsets.shape != (1,):
            raise ValueError(
                f"offsets must have shape (1,) where there are no features, got {offsets.shape}"
            )
        if offsets.ndim != 1 or len(offsets) == 0 or (len(offsets) - 1) % max(1, n_features):
            raise ValueError(
                f"offsets must be 1-D with n_features * batch + 1 entries where there are "
                f"{n_features} features, got shape {offsets.shape}"
            )
        n_bags = (len(offsets) - 1) // max(1, n_features)
        sample = None
        if isinstance(per_sample_weights, Mapping):
            raise TypeError(
                "per_sample_weights must be an array where values is one, "
                f"got {_arguments.describe(per_sample_weights)}"
            )
        if per_sample_weights is not None:
            for feature in self.features:
                if feature.mode != "sum":
                    raise ValueError(
                        f"per_sample_weights must be None where feature {feature.name!r} "
                        f"has mode {feature.mode!r}, got "
                        f"{_arguments.describe(per_sample_weights)}"
                    )
            sample = _arguments.as_sample_weights(
                per_sample_weights, indices, "sum", _FLOAT32, "values'"
            )
        i = kernels.first_bad_offset(offsets, len(indices))
        if i >= 0:
            place = f"feature {self.features[(i - 1) // n_bags].name!r}" if i > 0 else ""
            with _arguments.where(place):
                _arguments.check_offsets(offsets, len(indices), given_offsets, "values")
        parts = []
        for f in range(n_features):
            bounds = offsets[f * n_bags : (f + 1) * n_bags + 1]
            start, stop = int(bounds[0]), int(bounds[-1])
            parts.append(
                _Part(
                    indices[start:stop],
                    bounds - start,
                    None if sample is None else sample[start:stop],
                    n_bags,
                    "values",
                    start,
                    "",
                    given,
                    given_offsets,
                    per_sample_weights,
                )
            )
        return parts

    def _pool_parts(
        self,
        state: _State,
        parts: list[_Part],
        include_last_offset: bool,
        out: Any,
        num_threads: int | None,
    ) -> NDArray[np.float32]:
        """Pool what a call brought, feature by feature."""
        n_bags = parts[0].n_bags if parts else 0
        shape = (n_bags, self.dim)
        if out is None:
            result = _arguments.new_array(np.empty, shape, _FLOAT32)
        else:
            names, inputs = _inputs(state, parts)
            _arguments.check_out(out, shape, _FLOAT32, names, inputs)
            result = out
        if any(type(part.input) is _ragged.Column for part in parts):
            parts = self._as_columns(state, parts, include_last_offset)
            include_last_offset = kernels.PART
        ragged = include_last_offset == kernels.PART
        # Nothing may be written, and no id be counted, by a call that will raise.
        if out is not None or self._has_empty_rows or (ragged and self._counts is not None):
            self._check_positions(state, parts, include_last_offset)
            for _ in self._pieces(parts):
                pass
        for pieces in self._pieces(parts):
            bags = slice(pieces[0].start, pieces[0].start + pieces[0].n)
            n_indices = sum(p.n_used if ragged else p.indices.size for p in pieces)
            n_threads = self._threads_for(n_indices, pieces[0].n * len(pieces), num_threads)
            done = _threads.run(
                state.compiled.pool_each,
                n_threads,
                tuple(piece.indices for piece in pieces),
                tuple(piece.offsets for piece in pieces),
                include_last_offset,
                tuple(piece.sample for piece in pieces),
                result[bags],
            )
            if not done:
                self._check_positions(state, parts, include_last_offset)
                _arguments.raise_for_change()
        return result

    def _as_columns(
        self, state: _State, parts: list[_Part], include_last_offset: bool
    ) -> list[_Part]:
        """Return what a call brought as ragged columns, of which some are."""
        columns = []
        for feature, part, n_rows in zip(self.features, parts, state.n_rows, strict=True):
            with _arguments.where(f"feature {feature.name!r}"):
                if type(part.input) is _ragged.Column:
                    _containers.check_matrix(part.input, n_rows)
                    columns.append(part)
                    continue
                _arguments.check_offsets(part.offsets, part.input.size, part.given_offsets, "ids")
                offsets = part.offsets
                if offsets is not None and not include_last_offset:
                    offsets = np.append(offsets, part.input.size)
                input, sample = (
                    None
                    if array is None
                    else _containers.column_of(array, offsets, part.n_bags, "ids")
                    for array in (part.input, part.sample)
                )
                columns.append(part._replace(input=input, sample=sample))
        return columns

    def _pieces(self, parts: list[_Part]) -> Iterator[list[_ragged.Piece]]:
        """Yield what the kernels read at once: the same bags of each feature."""
        if not any(type(part.input) is _ragged.Column for part in parts):
            if parts:
                yield [_ragged.Piece(0, p.n_bags, p.input, p.offsets, p.sample) for p in parts]
            return
        ids = [part.input for part in parts]
        samples = [part.sample for part in parts if part.sample is not None]
        start = 0
        for chunks in _ragged.cut_alike(ids + samples):
            of_samples = iter(chunks[len(ids) :])
            pieces = []
            for feature, part, chunk in zip(self.features, parts, chunks[: len(ids)], strict=True):
                factors = None if part.sample is None else next(of_samples)
                with _arguments.where(f"feature {feature.name!r}"):
                    pieces.append(part.input.piece(start, chunk, factors, _FLOAT32))
            yield pieces
            start += chunks[0].n

    def _check_positions(
        self, state: _State, parts: list[_Part], include_last_offset: bool
    ) -> None:
        """Raise for the first offset or id, feature by feature, that is refused."""
        for feature, part, n_rows in zip(self.features, parts, state.n_rows, strict=True):
            with _arguments.where(f"feature {feature.name!r}"):
                if type(part.input) is _ragged.Column:
                    part.input.check(n_rows, self._counts is None)
                    continue
                _arguments.check_positions(
                    part.input,
                    part.offsets,
                    include_last_offset,
                    n_rows,
                    part.given,
                    part.given_offsets,
                    self._counts is None,
                    part.name,
                    part.start,
                )

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(EmbeddingBagCollection, invalid=self.invalid)
        return make, (dict(self.tables), self.features)

    def __repr__(self) -> str:
        return (
            f"EmbeddingBagCollection({len(self.tables)} tables, "
            f"{len(self.features)} features, dim={self.dim})"
        )


def _as_arrays(
    indices: NDArray[Any], offsets: Any, sample: Any, mode: str, include_last_offset: bool
) -> tuple[NDArray[Any] | None, NDArray[Any] | None, int]:
    """Return the offsets and weights of an array of ids, converted, and how many bags it has."""
    bounds = None
    if offsets is not None:
        bounds = _arguments.as_index_array(offsets, "offsets")
    elif indices.ndim == 1:
        raise ValueError(
            f"ids must be 2-D or come with offsets, as a pair (ids, offsets), "
            f"got shape {indices.shape}"
        )
    if sample is not None:
        sample = _arguments.as_sample_weights(sample, indices, mode, _FLOAT32, "the ids'")
    n_bags = kernels.count_bags(indices, bounds, include_last_offset)
    if n_bags < 0:
        _arguments.raise_for_shapes(indices, bounds, include_last_offset, "ids")
    return bounds, sample, n_bags


def _inputs(state: _State, parts: list[_Part]) -> tuple[list[str], list[Any]]:
    """Return all that `out` must lie apart from: names, and arrays."""
    inputs: list[tuple[str, Any]] = []
    for name, table in state.tables.items():
        inputs.append((f"tables[{name!r}]", _memory_of(table)))
    for part in parts:
        ids = f"values{part.key}"
        offsets = ids if part.key else "offsets"
        sample = f"per_sample_weights{part.key}"
        inputs += [(ids, part.given), (offsets, part.given_offsets), (sample, part.given_sample)]
        for name, array in ((ids, part.input), (offsets, part.offsets), (sample, part.sample)):
            if type(array) is _ragged.Column:
                inputs += [(name, memory) for memory in array.arrays()]
            else:
                inputs.append((name, array))
    return [name for name, _ in inputs], [array for _, array in inputs]


def _memory_of(table: AnyTable) -> NDArray[Any]:
    return table.packed if isinstance(table, QuantizedTable) else table


def _as_features(features: Any) -> tuple[Feature, ...]:
    describe = _arguments.describe
    try:
        if isinstance(features, Feature):
            raise TypeError
        each = iter(features)
    except (TypeError, NotImplementedError):  # the latter of a memoryview with two axes
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
    _replacing = threading.RLock()  # a thread of the parent may have held the other


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""A lookup as one value: `Call` holds its checked arguments.

    make     check the arguments, each rule once (_arguments.py), and return a `Call`
    run      run the kernels, piece by piece, with as many threads as the work is worth
    blame    raise for the first invalid offset or id

`embedding_bag` handles the lookups that the compiled function in functional.py declines.
Gradients (backward.py) and the features of a collection (collection.py) are calls too.

Tested in tests/lookups/ and tests/columns/.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from embag import _arguments, _encodings, _modes
from embag._bags import Bags, Weights, add_weights, as_bags, copy_if_shared
from embag._columns.pieces import BLOCK_ITEMS, Piece, batch_pieces
from embag._encodings import Table
from embag._kernels.dispatch import kernels
from embag._modes import Mode
from embag._process import threads
from embag._tensors import as_ndarray

AnyArray = NDArray[Any]

_INT64 = np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Call:
    """A lookup, checked except for the values of its ids and offsets."""

    table: Table
    bags: Bags
    weights: Weights
    mode: Mode
    padding: int = -1  # the padding row; -1 for none
    refuse: bool = True  # ids out of range raise; otherwise they are skipped ...
    stand_in: int = -1  # ... or this row stands for them
    default: int = -1  # the row of a bag in which nothing counts; -1: it is zeros
    normalizes: bool = False  # results are divided by their norms
    num_threads: int | None = None
    given_weights: Any = None  # before conversion

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the result."""
        return self.bags.n_bags, self.table.dim

    @property
    def n_rows(self) -> int:
        """The number of rows of the table; of ids, if these are mapped."""
        return self.table.n_rows

    def pieces(self) -> Iterator[Piece]:
        """Yield the bags and their weights as the kernels read them."""
        weights: Any = self.weights  # an array for `ArrayBags`, a `Column` for a `Column`
        return self.bags.pieces(weights, self.table.sums_dtype)

    def check(self) -> None:
        """Raise for the first invalid offset or id, otherwise for the first invalid weight."""
        self.bags.check(self.n_rows, self.refuse, self.table.first_id)
        named = [row for row in (self.stand_in, self.default) if row >= 0]
        self.table.check_map(np.array(named, np.int64))
        for piece in self.pieces():  # converts, and so checks, ragged weights
            self.table.check_map(piece.used)

    def memory(self) -> list[tuple[str, Any]]:
        """Return the arrays of the call except the table's, each with its role."""
        memory = [*self.bags.memory(), ("weights", self.given_weights)]
        if isinstance(self.weights, np.ndarray):
            return [*memory, ("weights", self.weights)]
        return memory if self.weights is None else [*memory, *self.weights.memory("weights")]

    def team_for(self, pieces: list[Piece]) -> threads.Team:
        """Return the team for these pieces."""
        n_entries = sum(piece.n_used + piece.n for piece in pieces) * self.table.dim
        return threads.team_for(n_entries, self.num_threads)


def make(
    input: Any,
    table: Table,
    offsets: Any = None,
    *,
    mode: Any,
    per_sample_weights: Any = None,
    include_last_offset: Any = False,
    padding_idx: Any = None,
    lengths: Any = None,
    num_threads: Any = None,
    invalid: Any = "raise",
    default_idx: Any = None,
    normalize: Any = False,
    segment_ids: Any = None,
    n_bags: Any = None,
) -> Call:
    """Check the arguments of a lookup."""
    _arguments.check_flags(include_last_offset=include_last_offset, normalize=normalize)
    mode = _modes.as_mode(mode)
    bags = as_bags(
        input,
        offsets,
        lengths,
        include_last_offset,
        segment_ids=segment_ids,
        n_bags=n_bags,
    )
    bags, weights = add_weights(
        bags, per_sample_weights, mode, table.first_id + table.n_rows, table.sums_dtype
    )
    ids: Any = table.n_rows, "weight's", table.first_id
    refuse, stand_in = _arguments.as_invalid(invalid, *ids)
    if num_threads is not None:
        num_threads = _arguments.as_count(num_threads, "num_threads")
    return Call(
        table,
        bags,
        weights,
        mode,
        padding=_arguments.as_row(padding_idx, "padding_idx", *ids),
        refuse=refuse,
        stand_in=stand_in,
        default=_arguments.as_row(default_idx, "default_idx", *ids),
        normalizes=bool(normalize),
        num_threads=num_threads,
        given_weights=per_sample_weights,
    )


class Outputs(NamedTuple):
    """What a lookup fills, for all bags or for some."""

    result: AnyArray
    max_indices: NDArray[np.int64] | None = None
    n_valid: NDArray[np.int64] | None = None

    def of(self, bags: slice) -> "Outputs":
        """Return the part of some bags."""
        max_indices, n_valid = (
            None if array is None else array[bags] for array in (self.max_indices, self.n_valid)
        )
        return Outputs(self.result[bags], max_indices, n_valid)


def run(call: Call, outputs: Outputs) -> int:
    """Fill the outputs; return how many ids were out of range."""
    n_invalid = 0
    for pieces in batch_pieces(call.pieces(), BLOCK_ITEMS):
        bags = slice(pieces[0].start, pieces[-1].start + pieces[-1].n)
        team = call.team_for(pieces)
        counter = None if call.refuse else np.zeros(1, np.int64)
        if not _reduce(call, pieces, team, counter, outputs.of(bags)):
            blame(call)
        n_invalid += 0 if counter is None else int(counter[0])
    return n_invalid


def blame(call: Call) -> NoReturn:
    """Raise for the first offset, id or weight that made a kernel fail."""
    call.check()
    _arguments.raise_for_change()  # all are valid now


def _reduce(
    call: Call,
    pieces: list[Piece],
    team: threads.Team,
    counter: NDArray[np.int64] | None,
    outputs: Outputs,
) -> bool:
    """Run the kernels on pieces; return False if an offset or an id is invalid."""
    table, (result, max_indices, n_valid) = call.table, outputs
    inputs, offsets, samples = zip(*(piece.arrays for piece in pieces), strict=True)
    target, code = _encodings.as_result(result)
    if max_indices is not None and not table.is_plain:
        return _reduce_decoded(call, pieces, team, counter, outputs)
    chooses_scaled = call.mode.selects and table.has_scaled_ids
    if result.dtype != table.sums_dtype and (
        table.encoding.is_plain or call.normalizes or chooses_scaled
    ):
        # NumPy rounds the sums afterwards, to nearest, ties to even.
        sums = _arguments.new_array(np.empty, result.shape, table.sums_dtype)
        if not _reduce(call, pieces, team, counter, outputs._replace(result=sums)):
            return False
        with np.errstate(all="ignore"):
            np.ndarray.view(result, np.ndarray)[...] = sums
        return True
    return threads.run(
        kernels.reduce_bags,
        team,
        table.rows,
        table.code,
        table.dim,
        inputs,
        offsets,
        call.bags.bounds_kind,
        samples,
        call.mode.code,
        call.padding,
        counter,
        target,
        code,
        max_indices,
        None,
        call.stand_in,
        call.default,
        call.normalizes,
        n_valid,
        table.mapping,
        table.scales,
    )


def _reduce_decoded(
    call: Call,
    pieces: list[Piece],
    team: threads.Team,
    counter: NDArray[np.int64] | None,
    outputs: Outputs,
) -> bool:
    """Return the winning rows of any table, as `_reduce` does for plain ones.

    This is rarely needed, so no kernel does it for tables of narrower entries or with mapped ids.
    The rows in use are decoded instead, and looked up under new numbers.
    """
    table, max_indices = call.table, outputs.max_indices
    assert max_indices is not None
    left_out, named = call.padding, [call.padding, call.stand_in, call.default]
    named = [row for row in named if row >= 0]
    used = [np.array(named, np.int64), *(piece.used for piece in pieces)]
    rows, numbers = np.unique(np.concatenate(used), return_inverse=True)
    # Ids out of range stay out of range: their numbers are negative, or too large.
    in_range = _arguments.rows_in_range(rows, table.n_rows, table.first_id)
    rows, numbers = rows[in_range], numbers.reshape(-1)[len(named) :] - in_range.start
    rows = rows.astype(np.int64, copy=False)

    def number_of(row: int) -> int:
        return int(np.searchsorted(rows, row)) if row >= 0 else -1

    pruned = np.zeros(0, np.int64)
    if table.mapping is not None:
        # Ids without a row are skipped: they all get the number of the padding.
        pruned = np.flatnonzero(table.mapping.is_pruned(rows))
        if left_out < 0 and len(pruned):
            left_out = int(rows[pruned[0]])
        numbers = np.where(np.isin(numbers, pruned), number_of(left_out), numbers)

    def number_with_row(row: int, otherwise: int) -> int:
        return otherwise if number_of(row) in pruned else number_of(row)

    values = _arguments.new_array(np.empty, (len(rows), table.dim), table.sums_dtype)
    if not table.decode(rows, values, team):
        return False
    renumbered, start = [], 0
    for piece in pieces:
        stop = start + piece.n_used
        indices = np.zeros(piece.indices.shape, np.int64)
        indices.reshape(-1)[piece.first : piece.first + piece.n_used] = numbers[start:stop]
        renumbered.append(piece._replace(indices=indices))
        start = stop
    decoded = replace(
        call,
        table=_encodings.as_table(values),
        padding=number_of(left_out),
        stand_in=number_with_row(call.stand_in, number_of(left_out)),
        default=number_with_row(call.default, -1),
    )
    if not _reduce(decoded, renumbered, team, counter, outputs):
        return False
    if len(rows):
        max_indices[...] = np.where(max_indices < 0, -1, rows[max_indices])
    return True


def embedding_bag(
    input: Any,
    weight: Any,
    offsets: Any,
    max_norm: Any,
    norm_type: Any,
    scale_grad_by_freq: Any,
    mode: Any,
    sparse: Any,
    per_sample_weights: Any,
    include_last_offset: Any,
    padding_idx: Any,
    lengths: Any,
    out: Any,
    return_max_indices: Any,
    num_threads: Any,
    out_dtype: Any,
    invalid: Any,
    return_n_invalid: Any,
    default_idx: Any,
    return_n_valid: Any,
    normalize: Any,
    segment_ids: Any,
    n_bags: Any,
) -> Any:
    """Do what `embag.embedding_bag` documents, for all arguments."""
    _arguments.check_flags(
        scale_grad_by_freq=scale_grad_by_freq,
        sparse=sparse,
        return_max_indices=return_max_indices,
        return_n_invalid=return_n_invalid,
        return_n_valid=return_n_valid,
    )
    weight = as_ndarray(weight, "weight")
    call = make(
        input,
        _encodings.as_table(weight),
        offsets,
        mode=mode,
        per_sample_weights=per_sample_weights,
        include_last_offset=include_last_offset,
        padding_idx=padding_idx,
        lengths=lengths,
        num_threads=num_threads,
        invalid=invalid,
        default_idx=default_idx,
        normalize=normalize,
        segment_ids=segment_ids,
        n_bags=n_bags,
    )
    _modes.check_options(call.mode, sparse, scale_grad_by_freq, return_max_indices)
    norm_type = _arguments.as_norm_type(norm_type)
    dtype = _encodings.as_out_dtype(out_dtype, call.table.sums_dtype)
    if max_norm is not None:
        max_norm = _arguments.as_max_norm(max_norm, weight)

    result = as_result(out, call, dtype, weight)
    winners = _arguments.new_array(np.empty, call.shape, _INT64) if return_max_indices else None
    decodes = winners is not None and not call.table.is_plain
    if max_norm is not None:
        call = _renorm(_detach_from_table(call, weight), weight, max_norm, norm_type)
    elif out is not None or decodes or call.table.dim == 0:
        # `out` may be written to only if all ids and offsets are valid. Decoding counts on that,
        # too. And kernels do not read the ids where rows have no columns.
        call.check()

    n_valid = _arguments.new_array(np.empty, call.shape[:1], _INT64) if return_n_valid else None
    n_invalid = run(call, Outputs(result, winners, n_valid))
    others: list[Any] = [] if winners is None else [winners]
    if return_n_invalid:
        others.append(n_invalid)
    if return_n_valid:
        others.append(n_valid)
    return (result, *others) if others else result


def as_result(
    out: Any, call: Call, dtype: np.dtype[Any], weight: Any, name: str = "weight"
) -> AnyArray:
    """Return the array for the result: a new one, or `out`.

    Raises unless `out` fits and shares no memory with the arguments. `name` is that of the table.
    """
    if out is None:
        return _arguments.new_array(np.empty, call.shape, dtype)
    # The arrays before and after conversion: either may own the memory.
    names = {"ids": "input", "weights": "per_sample_weights"}
    memory = [(names.get(role, role), array) for role, array in call.memory()]
    memory += [(name, array) for array in (weight, *call.table.memory())]
    _arguments.check_out(out, call.shape, dtype, *zip(*memory, strict=True))
    return out  # type: ignore[no-any-return]


def _detach_from_table(call: Call, weight: Any) -> Call:
    """Return the call with bags and weights in memory that a change of the table leaves alone."""
    weights = call.weights
    if isinstance(weights, np.ndarray):
        weights = copy_if_shared(weights, weight)
    elif weights is not None:
        weights = weights.detach_from(weight)
    return replace(call, bags=call.bags.detach_from(weight), weights=weights)


def _has_empty_bag(call: Call) -> bool:
    """Return whether nothing counts in a bag."""
    n_valid = np.zeros(call.shape[0], np.int64)
    sums = _arguments.new_array(np.empty, call.shape, call.table.sums_dtype)
    run(replace(call, default=-1), Outputs(sums, n_valid=n_valid))
    return bool((n_valid == 0).any())


def _renorm(call: Call, weight: Any, max_norm: float, norm_type: float) -> Call:
    """Scale the rows in use whose norm exceeds `max_norm`, each once, in place.

    Raises before that for an invalid offset or id. Returns the call with the scaled table.
    """
    call.check()
    used = [np.unique(piece.used) for piece in call.pieces()]
    rows = np.unique(np.concatenate([np.zeros(0, np.int64), *used]))
    if not call.refuse:
        in_range = rows[_arguments.rows_in_range(rows, call.n_rows)]
        named = [call.stand_in] * (call.stand_in >= 0 and len(in_range) < len(rows))
        rows = np.union1d(in_range, np.array(named, np.int64))
    if call.default >= 0 and _has_empty_bag(call):
        rows = np.union1d(rows, [call.default])
    if kernels.first_bad_index(rows, call.n_rows) >= 0:
        _arguments.raise_for_change()
    team = threads.team_for(len(rows) * call.table.dim, call.num_threads)
    if kernels.is_table(weight):
        threads.run(kernels.renorm, team, weight, rows, max_norm, norm_type)
    else:
        copies = np.ascontiguousarray(weight[rows])
        ids = np.arange(len(rows))
        threads.run(kernels.renorm, team, copies, ids, max_norm, norm_type)
        weight[rows] = copies
    return replace(call, table=_encodings.as_table(weight, kept=True))

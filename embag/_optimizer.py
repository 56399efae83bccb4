"""`Optimizer`: a table, the states of its rows, and steps on them.

The rules are in optim.py. A step, or one on each of several tables, is one call of the kernels
(`_kernels/steps.pxi`).

Tested in tests/gradients/test_optimizers.py.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embag import _arguments, _call, _encodings
from embag._kernels.dispatch import kernels
from embag._process import threads
from embag._terms import Terms
from embag._types import Ids, Invalid, Mode, SampleWeights
from embag.backward import Gradient, call_of, gradients_of, rows_of
from embag.memory import aligned_copy, aligned_empty
from embag.remapped import RemappedTable
from embag.sparse_rows import SparseRows

AnyArray: TypeAlias = NDArray[Any]

_LARGEST = float(np.finfo(np.float32).max)
MOST_STEPS = 2**63 - 2  # the number of the next one fits 64 bits

_NOT_COPIED = ("_progress", "_scratch")


class Optimizer:
    """The base of the optimizers: a table, the states of its rows, and the steps.

    An optimizer holds its table by reference and changes it in place. Rows that do not occur in a
    gradient keep their bits, and so do their states; so do padding rows, skipped ids and frozen
    rows. A dense gradient means that every row occurs.

    Attributes
    ----------
    table : ndarray or RemappedTable
        The table.
    lr : float
        The learning rate. It may be set between steps.
    n_steps : int
        The number of steps so far.
    states : dict of str to ndarray
        The states: arrays of the shape of the table, or ``(n_rows, 1)``; float64 for a float64
        table, float32 for any other.

    Raises
    ------
    TypeError
        If `table` is no array of floats (see `embedding_bag_backward`) or a RemappedTable of one,
        or an option has the wrong kind.
    ValueError
        If the table is not 2-D, is read-only, or the entries of a row are not adjacent; if an
        option is out of its range.
    IndexError
        If a frozen row is out of range.

    Notes
    -----
    Computed in the dtype of the states. An entry of a float16 or bfloat16 table is read, changed
    in float32, and rounded to nearest. With `stochastic_rounding` it becomes the nearest smaller or
    larger entry by chance, the nearer one more often, so that on average no small step is lost.
    That chance depends on `seed`, the step, the row and the column alone.

    The bits do not depend on the number of threads or on the instruction-set level. If `step` or
    `update` raises, nothing has changed, unless it is a RuntimeError for arrays that another
    thread changed. An interrupted call has changed nothing, or all rows.

    Pickles and deep copies contain the table; let no step run meanwhile. `save_checkpoint` writes
    optimizers to a file.
    """

    _rule: str
    _state_names: tuple[str, ...] = ()
    _is_narrow = False  # a state has one number for each row
    _counts = True  # the number of the step matters, also to torch

    def __init__(
        self,
        table: "AnyArray | RemappedTable",
        lr: float,
        frozen: "ArrayLike | None" = None,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        if type(self) is Optimizer:
            raise TypeError("an optimizer must be of a subclass, such as SGD, got Optimizer")
        rows = rows_of(table, "table")
        encoding = _encodings.encoding_of(rows.dtype)
        assert encoding is not None
        self.table = table
        self.lr = lr
        self._progress = kernels.Progress()
        self._shape, self._dtype, self._encoding = rows.shape, rows.dtype, encoding
        _check_layout(rows, "table")
        _arguments.check_flags(stochastic_rounding=stochastic_rounding)
        if stochastic_rounding and encoding.is_plain:
            raise ValueError(
                f"stochastic_rounding must be False for a table of {rows.dtype}, got True"
            )
        self._stochastic_rounding = bool(stochastic_rounding)
        self._seed = _as_seed(seed)
        self._active = _as_active(frozen, rows.shape[0])
        # Of the sort. Kept, because the system gives new memory page by page: that would take
        # longer than the sort.
        self._scratch = np.empty(0, np.int64)
        n_columns = 1 if self._is_narrow else rows.shape[1]
        self.states: dict[str, AnyArray] = {
            name: aligned_empty((rows.shape[0], n_columns), encoding.sums_dtype)
            for name in self._state_names
        }
        for name, state in self.states.items():
            state.fill(self._initial_value(name))

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = self._as_lr(lr)

    def _as_lr(self, lr: float) -> float:
        return as_not_negative(lr, "lr")

    @property
    def stochastic_rounding(self) -> bool:
        """Whether entries are rounded by chance."""
        return self._stochastic_rounding

    @property
    def seed(self) -> int:
        """The seed of that chance."""
        return self._seed

    @property
    def n_steps(self) -> int:
        """The number of steps so far."""
        n_steps: int = self._progress.n_steps
        return n_steps

    @n_steps.setter
    def n_steps(self, n_steps: int) -> None:
        self._progress.n_steps = _as_n_steps(n_steps, "n_steps")

    def _numbers(self, t: int) -> tuple[float, ...]:
        """Return the numbers of the rule for step `t`, which counts from 1."""
        return (self.lr,)

    def _initial_value(self, state: str) -> float:
        """Return what every entry of a state begins with."""
        return 0.0

    @classmethod
    def _option_names(cls) -> list[str]:
        """Return the options of the constructor, except `frozen`: each is an attribute, too."""
        _, _, *names = inspect.signature(cls.__init__).parameters  # self, table, options
        return [name for name in names if name != "frozen"]

    def _options(self) -> dict[str, Any]:
        """Return the values of the options by name."""
        return {name: getattr(self, name) for name in self._option_names()}

    def _hold(self, table: AnyArray, states: dict[str, AnyArray], n_steps: int) -> None:
        """Hold other memory of these dtypes, which the next step checks."""
        self.table, self.states, self._shape = table, states, table.shape
        self.n_steps = n_steps

    def _locked(self) -> Any:
        """Return a context that keeps other calls of this optimizer out of its block."""
        return kernels.Turn((self._progress,))

    def step(self, grad: "SparseRows | AnyArray", *, num_threads: int | None = None) -> None:
        """Change the table by a gradient.

        Parameters
        ----------
        grad : SparseRows or ndarray, shape (n_rows, dim)
            The gradient of the table, in the dtype of the states. Only the rows of `SparseRows`
            are changed; of an array all rows.
        num_threads : int, optional
            The largest number of threads for this call, instead of `get_num_threads`.

        Raises
        ------
        TypeError
            If `grad` has another kind or dtype.
        ValueError
            If `grad` has another shape, or the table or a state has changed its shape, dtype or
            layout, is read-only, or shares memory with `grad`.
        RuntimeError
            If another call of this optimizer is running.
        """
        if num_threads is not None:
            num_threads = _arguments.as_count(num_threads, "num_threads")
        if type(grad) is not SparseRows:
            _arguments.check_array(grad, "grad", "a numpy.ndarray or SparseRows")
        if not step_together([(self, grad)], num_threads):
            _arguments.raise_for_change()

    def update(
        self,
        grad_output: "ArrayLike",
        input: "Ids",
        offsets: "ArrayLike | None" = None,
        *,
        mode: Mode = "mean",
        per_sample_weights: "SampleWeights | None" = None,
        include_last_offset: bool = False,
        padding_idx: int | None = None,
        scale_grad_by_freq: bool = False,
        max_indices: "ArrayLike | None" = None,
        wrt: Literal["weight"] | None = "weight",
        num_threads: int | None = None,
        invalid: Invalid = "raise",
        default_idx: int | None = None,
        normalize: bool = False,
        segment_ids: "ArrayLike | None" = None,
        n_bags: int | None = None,
        lengths: "ArrayLike | None" = None,
    ) -> AnyArray | None:
        """Compute the gradient of a lookup, and change the table by it.

        The gradient is never in memory: some rows of it are summed at a time, and the same rows of
        the table change at once.

        Parameters
        ----------
        grad_output : array_like, shape (n_bags, dim)
            The gradient of the output of the lookup.
        wrt : {"weight", None}, optional
            None also returns the gradient of `per_sample_weights`, which is computed before the
            table changes.
        input, offsets, mode, per_sample_weights, include_last_offset, padding_idx, \
scale_grad_by_freq, max_indices, num_threads, invalid, default_idx, normalize, segment_ids, \
n_bags, lengths
            The lookup: see `embedding_bag_backward`.

        Returns
        -------
        ndarray or None
            With ``wrt=None``: the gradient of `per_sample_weights`.

        Raises
        ------
        TypeError, ValueError, IndexError, MemoryError, RuntimeError
            As `embedding_bag_backward` and `step`.

        Notes
        -----
        The bits are those of ``step(embedding_bag_backward(..., sparse=True).weight)``. Beside its
        arrays, a call takes 16 bytes for each id (24 with weights), which the optimizer keeps for
        the next call. A mode that divides takes a copy of `grad_output`; lists, segment ids,
        `default_idx`, and `invalid` other than "raise" take copies of ids. With ``mode="max"`` and
        ``mode="min"``, and for a RemappedTable, the gradient of the rows that occur is in memory.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> table = np.ones((3, 2), np.float32)
        >>> optimizer = embag.optim.SGD(table, lr=0.5)
        >>> optimizer.update([[1, 2]], [[0, 2]], mode="sum")
        >>> table
        array([[0.5, 0. ],
               [1. , 1. ],
               [0.5, 0. ]], dtype=float32)
        """
        if wrt not in ("weight", None):
            raise ValueError(f"wrt must be 'weight' or None, got {_arguments.describe(wrt)}")
        call = call_of(
            input,
            self.table,
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
        grads = gradients_of(
            call, grad_output, self.table, max_indices, wrt, scale_grad_by_freq, "terms"
        )
        if not step_together([(self, grads.weight)], call.num_threads):
            _call.blame(call)
        of_weights: AnyArray | None = grads.per_sample_weights
        return of_weights

    def _arrays(self) -> dict[str, AnyArray]:
        """Return the rows of the table and the states; raise if they are not as they were."""
        rows = rows_of(self.table, "table")
        sums_dtype = self._encoding.sums_dtype
        shape_of_states = (self._shape[0], 1) if self._is_narrow else self._shape
        expected = [("table", rows, self._dtype, self._shape)]
        if self.states.keys() != set(self._state_names):
            raise ValueError(
                f"states must be {', '.join(self._state_names) or 'none'}, "
                f"got {', '.join(map(str, self.states)) or 'none'}"
            )
        for name in self._state_names:
            _arguments.check_array(self.states[name], name)
            expected.append((name, self.states[name], sums_dtype, shape_of_states))
        for name, array, dtype, shape in expected:
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"{name} must be {dtype} of shape {shape}, as it was, "
                    f"got {array.dtype} of shape {array.shape}"
                )
            _check_layout(array, name)
        return {name: array for name, array, _, _ in expected}

    def _read(self, grad: Gradient) -> "_ReadGradient":
        """Return a gradient of the table as the kernels read it."""
        rows = terms = None
        values: Any
        if type(grad) is SparseRows:
            rows, values, shape = grad.indices, grad.values, grad.shape
        elif type(grad) is Terms:
            values, shape, terms = grad.grad, (grad.n_rows, grad.grad.shape[1]), grad
        else:
            values = np.ndarray.view(grad, np.ndarray)  # type: ignore[arg-type]
            shape = values.shape
        if shape != self._shape:
            raise ValueError(f"grad must have shape {self._shape}, got {shape}")
        if values.dtype != self._encoding.sums_dtype:
            raise TypeError(
                f"grad must be {self._encoding.sums_dtype} for a table of {self._dtype}, "
                f"got {values.dtype}"
            )
        return _ReadGradient(rows, _arguments.as_table(values), terms)

    def _described(self, arrays: dict[str, AnyArray]) -> tuple[Any, ...]:
        """Return the next step as the kernels read it: see `step_tables`."""
        t = self.n_steps + 1
        table, *states = arrays.values()
        chance = (self.seed, t) if self.stochastic_rounding else None
        rule = kernels.RULES[self._rule], self._numbers(t)
        rows = _encodings.as_numpy_type(table), self._encoding.code
        return t, *rule, *rows, tuple(states), self._active, chance

    def _describe_gradient(self, grad: "_ReadGradient", n_threads: int) -> tuple[Any, ...]:
        """Return a gradient as the kernels read it: see `step_tables`."""
        terms = grad.terms
        if terms is None:
            return grad.rows, grad.values, None, None
        n_needed = kernels.count_scratch(terms.n_positions, terms.factors is not None, n_threads)
        if n_needed > len(self._scratch):
            self._scratch = _arguments.new_array(np.empty, (n_needed,), np.dtype(np.int64))
        bags = terms.bags
        described = (
            *(bags.indices, bags.offsets, bags.includes_last, terms.n_positions, terms.padding),
            *(terms.factors, terms.is_divided),
        )
        return None, grad.values, described, self._scratch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and copies of the states, by name.

        Returns
        -------
        dict
            "step", an int, and an array for each state. The names are those of torch's optimizer.

        Raises
        ------
        RuntimeError
            If another call of this optimizer is running.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> optimizer = embag.optim.Adagrad(np.ones((2, 1)), lr=0.1)
        >>> optimizer.step(np.array([[2.0], [0.0]]))
        >>> optimizer.state_dict()
        {'step': 1, 'sum': array([[4.],
               [0.]])}
        """
        with self._locked():
            return {"step": self.n_steps, **{name: a.copy() for name, a in self.states.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, as `state_dict` returns it, or as torch's optimizer has it.

        Parameters
        ----------
        state : mapping
            "step", a number, and an array for each state, of its shape. It is copied. torch's
            tensors are arrays; its state of a parameter is ``optimizer.state[parameter]``.

        Raises
        ------
        TypeError, ValueError
            If a state is missing, unknown, or has another dtype or shape.
        MemoryError
            If there is not enough memory for the copies.
        RuntimeError
            If another call of this optimizer is running. After any error, nothing has changed.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {_arguments.describe(state)}")
        state = dict(state)
        if not self._counts:
            state.setdefault("step", 0)
        names = {"step", *self._state_names}
        if set(state) != names:
            raise ValueError(
                f"state must have {', '.join(sorted(names))}, got {', '.join(map(str, state))}"
            )
        n_steps = _as_n_steps(state["step"], "step")
        with self._locked():
            arrays = self._arrays()
            new = {}
            for name in self._state_names:
                array, old = np.asarray(state[name]), arrays[name]
                if array.dtype != old.dtype:
                    raise TypeError(f"{name} must be {old.dtype}, got {array.dtype}")
                if array.shape != old.shape and array.shape != old.shape[: old.shape[1] == 1]:
                    raise ValueError(f"{name} must have shape {old.shape}, got {array.shape}")
                new[name] = aligned_copy(array.reshape(old.shape))
            # Together, so that no interrupt comes between; a step described before is refused.
            begun, ended = kernels.Progress(), self._progress
            begun.n_steps, ended.n_steps = n_steps, -1
            vars(self).update(states=new, _progress=begun)

    def grow(self, n_rows: int) -> AnyArray:
        """Add rows to the table: zeros, whose states have their initial values.

        Parameters
        ----------
        n_rows : int
            The new number of rows, at least the old one.

        Returns
        -------
        ndarray, shape (n_rows, dim)
            The new table, in memory from `aligned_empty`. The optimizer holds it from now on. The
            old table is unchanged; layers and collections that hold it need the new one.

        Raises
        ------
        TypeError
            If `n_rows` is not an integer, or the table is not an ndarray.
        ValueError
            If `n_rows` is less than the number of rows, or the table or a state has changed its
            shape, dtype or layout.
        MemoryError
            If there is not enough memory. Nothing has changed then.
        RuntimeError
            If another call of this optimizer is running.

        Notes
        -----
        Frozen rows remain frozen; new rows are not. The old table and states are in memory until
        the new ones are complete.

        Examples
        --------
        >>> import numpy as np
        >>> import embag
        >>> layer = embag.EmbeddingBag.from_pretrained(np.ones((2, 3), np.float32))
        >>> optimizer = embag.optim.Adagrad(layer.weight, lr=0.1)
        >>> layer.weight, layer.num_embeddings = optimizer.grow(3), 3
        >>> layer.weight
        array([[1., 1., 1.],
               [1., 1., 1.],
               [0., 0., 0.]], dtype=float32)
        """
        n_rows = _arguments.as_integer(n_rows, "n_rows")
        with self._locked():
            _arguments.check_array(self.table, "table")
            rows = self._arrays()["table"]
            n_old, dim = self._shape
            if not n_old <= n_rows < 2**63:
                raise ValueError(
                    f"n_rows must be {n_old}, the rows of the table, to 2**63 - 1, "
                    f"got {_arguments.describe(n_rows)}"
                )
            table = _grown(rows, n_rows, 0)
            states = {
                name: _grown(state, n_rows, self._initial_value(name))
                for name, state in self.states.items()
            }
            active = None if self._active is None else _grown(self._active, n_rows, True)
            # Together, so that no interrupt comes between; a step described before is refused.
            begun, ended = kernels.Progress(), self._progress
            begun.n_steps, ended.n_steps = ended.n_steps, -1
            vars(self).update(
                table=table, states=states, _active=active, _shape=(n_rows, dim), _progress=begun
            )
        return table

    def __getstate__(self) -> dict[str, Any]:
        with self._locked():
            state = {name: value for name, value in vars(self).items() if name not in _NOT_COPIED}
            return {**state, "n_steps": self.n_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._progress = kernels.Progress()
        self._scratch = np.empty(0, np.int64)
        self.n_steps = state.pop("n_steps")
        vars(self).update(state)

    def __copy__(self) -> NoReturn:
        raise TypeError(
            "an optimizer must be copied by copy.deepcopy, got copy.copy: both would change "
            "the same states"
        )

    def __repr__(self) -> str:
        n_rows, dim = self._shape
        return (
            f"{type(self).__name__}(table of {n_rows} rows, dim={dim}, {self._dtype}, "
            f"lr={self.lr:g}, {self.n_steps} steps)"
        )


class _ReadGradient(NamedTuple):
    """The gradient of a table, as the kernels read it."""

    rows: NDArray[np.int64] | None
    values: AnyArray
    terms: Terms | None

    @property
    def memory(self) -> list[AnyArray]:
        """The arrays that are read while the table changes."""
        factors = None if self.terms is None else self.terms.factors
        return [self.values] if factors is None else [self.values, factors]

    def n_entries(self, n_arrays: int) -> int:
        """Return about how many entries a step reads and writes, if so many arrays change."""
        n = len(self.values) if self.terms is None else self.terms.n_positions
        return n * (1 + 2 * n_arrays) * int(self.values.shape[1])


def step_together(
    steps: Sequence[tuple[Optimizer, Gradient]], num_threads: int | None = None
) -> bool:
    """Make a step of each of several optimizers, in one parallel region.

    Returns False if an id or an offset is bad. Everything is checked before anything changes.
    """
    optimizers = [optimizer for optimizer, _ in steps]
    # Read before the arrays: if other arrays are taken over in between, the step is refused.
    progress = tuple(optimizer._progress for optimizer in optimizers)
    grads = [_fitting(grad) for _, grad in steps]
    if any(grad is None for grad in grads):
        return False
    arrays = [optimizer._arrays() for optimizer in optimizers]
    gradients = _apart(list(map(Optimizer._read, optimizers, grads)), arrays)
    team = threads.team_for(
        sum(grad.n_entries(len(own)) for own, grad in zip(arrays, gradients, strict=True)),
        num_threads,
    )
    done: bool = threads.run(
        kernels.step_tables,
        team,
        progress,
        tuple(map(Optimizer._described, optimizers, arrays)),
        tuple(
            optimizer._describe_gradient(grad, team.n)
            for optimizer, grad in zip(optimizers, gradients, strict=True)
        ),
    )
    return done


def _fitting(grad: Gradient) -> Any:
    """Return the gradient, already summed where the kernels cannot sort it; None if it is bad."""
    if type(grad) is Terms and not grad.fits_keys:
        return grad.summed(threads.SERIAL, True)
    return grad


def _apart(
    gradients: list[_ReadGradient], arrays: list[dict[str, AnyArray]]
) -> list[_ReadGradient]:
    """Return the gradients, apart from all memory that changes; raise if that overlaps itself."""
    changed = [(name, array) for own in arrays for name, array in own.items()]
    read = tuple(array for grad in gradients for array in grad.memory)
    if kernels.are_apart(tuple(array for _, array in changed), read):
        return gradients
    for i, (name, array) in enumerate(changed):
        for other, memory_of_other in changed[:i]:
            if _arguments.shares_memory(array, memory_of_other):
                raise ValueError(f"{name} must share no memory with {other}, got an overlap")
    return [_apart_from(changed, grad) for grad in gradients]


def _apart_from(changed: list[tuple[str, AnyArray]], grad: _ReadGradient) -> _ReadGradient:
    for name, array in changed:
        if not any(_arguments.shares_memory(array, memory) for memory in grad.memory):
            continue
        if grad.terms is None:
            raise ValueError(f"grad must share no memory with {name}, got an overlap")
        factors = grad.terms.factors
        terms = grad.terms._replace(factors=None if factors is None else factors.copy())
        return _ReadGradient(None, grad.values.copy(), terms)
    return grad


def _grown(array: AnyArray, n_rows: int, value: float) -> AnyArray:
    """Return a copy with rows of `value` after the others."""
    grown = aligned_empty((n_rows, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    grown[len(array) :] = value
    return grown


def _check_layout(array: AnyArray, name: str) -> None:
    encoding = _encodings.encoding_of(array.dtype)
    assert encoding is not None
    rows = _encodings.as_numpy_type(array)
    if not kernels.is_encoded_table(rows, encoding.code, array.shape[1]):
        raise ValueError(
            f"{name} must be aligned, with the entries of each row adjacent, "
            f"got strides {array.strides}"
        )
    if not array.flags.writeable:
        raise ValueError(f"{name} must be writeable, got a read-only array")
    if len(array) > 1 and abs(array.strides[0]) < array.shape[1] * array.itemsize:
        raise ValueError(f"{name} must have rows that do not overlap, got strides {array.strides}")


def _as_active(frozen: Any, n_rows: int) -> NDArray[np.bool_] | None:
    """Return which rows change, None for all."""
    if frozen is None:
        return None
    mask = np.asarray(frozen)
    if mask.dtype == np.bool_:
        if mask.shape != (n_rows,):
            raise ValueError(f"frozen must have shape ({n_rows},), got {mask.shape}")
        return ~mask
    rows = _arguments.as_indices(frozen, "frozen")
    if rows.ndim != 1:
        raise ValueError(f"frozen must be 1-D, got shape {rows.shape}")
    k = kernels.first_bad_index(rows, n_rows)
    if k >= 0:
        _arguments.raise_out_of_range(f"frozen[{k}]", int(rows.reshape(-1)[k]), n_rows)
    active = np.ones(n_rows, np.bool_)
    active[rows] = False
    return active


def as_not_negative(value: Any, name: str) -> float:
    """Return a number of at least 0 that float32 has room for."""
    number = _arguments.as_number(value, name)
    if not 0 <= number <= _LARGEST:
        raise ValueError(f"{name} must be at least 0 and finite in float32, got {number}")
    return number


class NotNegative:
    """An attribute that is a number of at least 0."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, optimizer: None, owner: type) -> "NotNegative": ...
    @overload
    def __get__(self, optimizer: Any, owner: type) -> float: ...
    def __get__(self, optimizer: Any, owner: type) -> "float | NotNegative":
        if optimizer is None:
            return self
        number: float = vars(optimizer)[self._name]
        return number

    def __set__(self, optimizer: Any, value: Any) -> None:
        vars(optimizer)[self._name] = as_not_negative(value, self._name)


def _as_n_steps(value: Any, name: str) -> int:
    """Return a number of steps: an integer, or another kind of number with the value of one."""
    n_steps = value
    if not isinstance(value, (int, np.integer)):
        number = _arguments.as_number(np.asarray(value)[()], name)
        n_steps = number if abs(number) <= 2**53 and number == int(number) else -1
    if not 0 <= n_steps <= MOST_STEPS:
        raise ValueError(
            f"{name} must be a count below 2**63 - 1, got {_arguments.describe(value)}"
        )
    return int(n_steps)


def _as_seed(value: Any) -> int:
    seed = _arguments.as_integer(value, "seed")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be at least 0 and less than 2**64, got {seed}")
    return seed

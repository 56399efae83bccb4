"""Make one call, sound or corrupted, and check what must hold for any call.

- It returns, or raises one of the documented exceptions. A sound call returns.
- Its arguments are unchanged, except those that the call may write to.
- Its result is right: `check` compares it with the reference.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import embag

from . import values
from .values import HostileError


@dataclass
class Case:
    """A call of `function` with these arguments by name."""

    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]
    check: Callable[[Any, dict[str, Any]], None]  # (result, arguments)
    raises: tuple[type[Exception], ...]
    writes: tuple[str, ...] = ()  # arguments that a call may write to if it returns
    torn: tuple[str, ...] = ()  # arguments that a call may write to even if it raises
    # Computes, before the call, what `check` needs of arguments that the call writes to.
    before: Callable[[dict[str, Any]], Any] | None = None
    sound: bool = True
    hidden: tuple[Any, ...] = field(default=())  # arrays that are not arguments

    def __repr__(self):
        given = ", ".join(f"{name}={describe(value)}" for name, value in self.arguments.items())
        return f"{'sound' if self.sound else 'corrupted'} {self.name}({given})"


def run(case):
    """Make the call, check it, and return how it ended."""
    kept = {name: memory_of(value) for name, value in case.arguments.items()}
    hidden = [memory_of(value) for value in case.hidden]
    needed = None
    if case.before is not None:
        try:
            needed = case.before(case.arguments)
        except Exception:  # a corrupted call may not allow this
            assert not case.sound
    try:
        result = case.function(**case.arguments)
    except (*case.raises, MemoryError, HostileError) as error:
        assert not case.sound, f"a sound call raised {error!r}"
        assert isinstance(error, HostileError | MemoryError) or str(error), repr(error)
        assert not isinstance(error, NotImplementedError | RecursionError), repr(error)
        for words in ("Buffer", "has incorrect type", "NoneType' object"):
            assert words not in str(error), repr(error)
        outcome, may_differ = _kind(error, case.raises), case.torn
    except TypeError as error:
        # Python itself refuses a call with a missing or unknown argument.
        assert "argument" in str(error), repr(error)
        assert not case.sound
        outcome, may_differ = "TypeError", ()
    else:
        arguments = case.arguments if needed is None else {**case.arguments, "before": needed}
        if not any(type(value) in values.MISREPORTING for value in case.arguments.values()):
            case.check(result, arguments)
        scaled = ("weight",) if case.arguments.get("max_norm") is not None else ()
        outcome, may_differ = "returned", (*case.writes, *scaled, *case.torn)
    written = [case.arguments[name] for name in may_differ if name in case.arguments]
    for name, value in case.arguments.items():
        if name in may_differ or any(_share_memory(value, other) for other in written):
            continue
        assert same(kept[name], memory_of(value)), (
            f"{name} was changed by a call that ended with {outcome}"
        )
    assert all(map(same, hidden, map(memory_of, case.hidden))), "memory of others was changed"
    return outcome


def _kind(error, raises):
    return next(
        kind.__name__ for kind in (HostileError, MemoryError, *raises) if isinstance(error, kind)
    )


def _share_memory(value, other):
    both = [array for array in (value, other) if issubclass(type(array), np.ndarray)]
    return len(both) == 2 and np.may_share_memory(*both)


def memory_of(value, depth=3):
    """Return a copy of the contents of an argument, for comparison by `same`."""
    kind = type(value)
    if issubclass(kind, np.ndarray):
        array = np.ndarray.view(value, np.ndarray)
        if array.ndim:  # an axis with stride 0 is one entry, however long it is
            array = array[tuple(slice(1) if s == 0 else slice(None) for s in array.strides)]
        fields = array.shape, array.dtype, array.flags.writeable
        return fields, array.tolist() if array.dtype.hasobject else array.tobytes()
    if kind is embag.QuantizedTable:
        return memory_of([getattr(value, name, None) for name in ("packed", "scales")])
    if kind is embag.RemappedTable:
        return memory_of([getattr(value, name, None) for name in ("table", "index_map", "scales")])
    if kind is embag.SparseRows:
        return memory_of(getattr(value, "indices", None)), memory_of(getattr(value, "values", None))
    if kind in (list, tuple) and depth:
        return [memory_of(item, depth - 1) for item in value]
    if kind is dict and depth:
        return [(id(key), memory_of(item, depth - 1)) for key, item in value.items()]
    return id(value)


def same(a, b):
    try:
        return a == b
    except Exception:  # an array of objects
        return True


def describe(value, depth=2):
    """Return the description of an argument in a report."""
    kind = type(value)
    if issubclass(kind, np.ndarray):
        array = np.ndarray.view(value, np.ndarray)
        text = f"{kind.__name__}(shape={array.shape}, dtype={array.dtype}, strides={array.strides}"
        if array.size <= 40 and max(array.shape, default=0) <= 40 and not array.dtype.hasobject:
            text += f", {array.tolist()}"
        return text + ("" if array.flags.writeable else ", read-only") + ")"
    if kind is dict and depth:
        return f"{{{', '.join(f'{k!r}: {describe(v, depth - 1)}' for k, v in value.items())}}}"
    if kind in (list, tuple) and depth and len(value) < 40:
        return f"{kind.__name__}({', '.join(describe(v, depth - 1) for v in value)})"
    try:
        return repr(value)[:80]
    except Exception:
        return kind.__name__


# --- Corruption -----------------------------------------------------------------------


def maybe_corrupt(rng, case, others=()):
    """Return a sound case unchanged, or with some arguments corrupted.

    `others` names optional arguments that the case lacks.
    """
    n_corrupted = rng.choice([0, 0, 0, 1, 1, 1, 2, 3])
    names = [*case.arguments, *others]
    for _ in range(n_corrupted if names else 0):
        rarely = others and (not case.arguments or rng.randint(0, 3) == 0)
        name = rng.choice(others if rarely else list(case.arguments))
        value = case.arguments.get(name)
        how = rng.choice(
            ["object", "array", "integer", *["edge"] * 5, "alias", "overlap", "misreport"]
        )
        if how == "edge" and issubclass(type(value), np.ndarray | Mapping | tuple | list):
            value = _with_edge(rng, value)
        elif how == "misreport" and type(value) is np.ndarray:
            value = values.lay_out(value, rng.choice(["misreport", *values.LAYOUTS]))
        elif how == "alias":
            value = case.arguments.get(rng.choice(names))
            if (
                type(value) is np.ndarray
                and value.ndim > 0
                and value.size < 10**6
                and rng.random() < 0.5
            ):
                value = rng.choice([value[::-1], value.T, value[:1], value.reshape(-1)])
        elif how == "overlap":
            value = _sharing_memory(rng.choice([*case.arguments.values(), None]), value)
        elif how == "integer":
            value = values.integer(rng)
        elif how == "array":
            value = values.arrays(rng)
        else:
            value = values.any_object(rng)
        case.arguments[name] = value
        case.sound = False
    if rng.randint(0, 63) == 0 and names:
        case.arguments.pop(rng.choice(names), None)
        case.sound = False
    return case


def _sharing_memory(other, value):
    """Return an array like `value` in the memory of another one, if it has room."""
    if not type(other) is type(value) is np.ndarray or not other.flags.c_contiguous:
        return other
    if not 0 < value.nbytes < 10**6:
        return other
    memory = other.reshape(-1).view(np.uint8) if other.dtype.kind in "iuf" else other
    if memory.nbytes < value.nbytes or memory.dtype != np.uint8 or value.dtype.hasobject:
        return other
    start = (memory.nbytes - value.nbytes) // 2 // 64 * 64
    return memory[start : start + value.nbytes].view(value.dtype).reshape(value.shape)


def _with_edge(rng, value, depth=4):
    """Return a copy with one extreme entry, at any depth."""
    kind = type(value)
    if kind is dict:
        if not value:
            key = values.any_object(rng)
            return {key if _is_hashable(key) else 1: 1}
        name = rng.choice(list(value))
        return {**value, name: _with_edge(rng, value[name])}
    if kind in (tuple, list) and value and depth:
        k = rng.randint(0, len(value) - 1)
        if type(value[k]) in (np.ndarray, tuple, list):
            inside = _with_edge(rng, value[k], depth - 1)
        else:
            inside = rng.choice([values.integer, values.any_object, values.arrays])(rng)
        if issubclass(type(inside), np.ndarray) and max(inside.shape, default=0) > 10**6:
            inside = None  # NumPy itself would read all of it
        return kind([*value[:k], inside, *value[k + 1 :]])
    if issubclass(kind, np.ndarray):
        value = np.ndarray.view(value, np.ndarray)
        if not 0 < value.size < 10**6 or value.dtype.kind not in "iuf":
            return values.any_object(rng)
        array = np.array(value)
        edge = values.integer(rng)
        if array.dtype.kind in "iu":
            info = np.iinfo(array.dtype)
            edge = min(max(int(edge), int(info.min)), int(info.max))
        else:
            edge = rng.choice([np.nan, np.inf, -np.inf, -0.0, 1e-42, 3e38, 1e300])
        with np.errstate(all="ignore"):
            array[np.unravel_index(rng.randint(0, array.size - 1), array.shape)] = edge
        return array
    return values.any_object(rng)


def _is_hashable(value):
    try:
        hash(value)
    except Exception:
        return False
    return True

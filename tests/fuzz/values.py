"""Values of arguments: any object, any array, any layout, extreme numbers."""

import decimal
import fractions
import itertools
import mmap
import pathlib

import ml_dtypes
import numpy as np

import embag

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)


class HostileError(Exception):
    """Raised by hostile objects; a call may let it pass."""


def _raise(error):
    raise error


def _with(**methods):
    """Return a class of objects with these special methods."""

    def method(action):
        return lambda _self, *_args, **_kwargs: action()

    members = {name: action if name == "__class__" else method(action)
               for name, action in methods.items()}  # fmt: skip
    return type("Hostile", (), members)


class _Subclass(np.ndarray):
    """A subclass that overrides nothing."""


class _WrongShape(np.ndarray):
    shape = property(lambda self: (3, 10**6))


class _WrongDtype(np.ndarray):
    dtype = property(lambda self: np.dtype(np.float32))


class _WrongLength(np.ndarray):
    def __len__(self):
        return 10**6


HOSTILE = [
    _with(__array__=lambda: np.arange(6)),
    _with(__array__=lambda: np.ones((3, 4), np.float32)),
    _with(__array__=lambda: "no array"),
    _with(__array__=lambda: _raise(HostileError())),
    _with(__array__=lambda: _raise(MemoryError())),
    _with(__index__=lambda: 1),
    _with(__index__=lambda: -(2**63)),
    _with(__index__=lambda: 2**70),
    _with(__index__=lambda: "no integer"),
    _with(__index__=lambda: _raise(HostileError())),
    _with(__float__=lambda: 1.5),
    _with(__float__=lambda: _raise(HostileError())),
    _with(__len__=lambda: -1, __getitem__=lambda: _raise(IndexError("of its own"))),
    _with(__len__=lambda: 2**62, __getitem__=lambda: _raise(IndexError("of its own"))),
    _with(__len__=lambda: 3, __getitem__=lambda: _raise(IndexError("of its own"))),
    _with(__len__=lambda: _raise(HostileError()), __getitem__=lambda: _raise(HostileError())),
    _with(__iter__=lambda: iter([0, 1])),
    _with(__iter__=lambda: _raise(HostileError())),
    _with(__bool__=lambda: _raise(HostileError())),
    _with(__eq__=lambda: _raise(HostileError()), __hash__=lambda: 1),
    _with(__hash__=lambda: _raise(HostileError())),
    _with(__repr__=lambda: _raise(HostileError())),
    _with(__fspath__=lambda: "/nowhere.npy"),
    _with(__fspath__=lambda: 3),
    _with(__getattr__=lambda: _raise(HostileError())),
    _with(__class__=property(lambda self: np.ndarray)),
    _with(__class__=property(lambda self: embag.QuantizedTable)),
    _with(__class__=property(lambda self: int)),
    _with(__class__=property(lambda self: str)),
    _with(__call__=lambda: _raise(HostileError())),
]

EDGES = [0, 1, -1, 2, 7, 8, 9, 127, 128, 255, 256, 2**15, 2**16]
EDGES += [
    2**k + d for k in (31, 32, 33, 53, 62, 63, 64) for d in (-1, 0, 1)
]  # fmt: skip
EDGES += [-(2**k) + d for k in (7, 31, 32, 62, 63) for d in (-1, 0, 1)]
EDGES += [10**30, -(10**30), 10**5000]

SCALARS = [
    None, True, False, 0.5, -0.0, 1e308, -1e-320, float("nan"), float("inf"), -float("inf"), 1j,
    "", "sum", "mean", "max", "map", "copy", "dicts", "fused", "tbe", "weight", "a", "\0", "\ud800",
    "x" * 1000, b"", b"ab", "int64", "float16", "bfloat16", ">f4", "O", "f4,", "V0", np.float32,
    float, np.dtype(">f8"), BFLOAT16, np.dtype("f4,i8"), np.dtype(("f4", (2,))),
    (), [], {}, set(), {1: 2}, {"a": 1}, (1,), (1, 2), (1, 2, 3), (-1, 2), [1.5], [None], [[]],
    [[1], [1, 2]], [1, "a"], [2**70], [[[1]]], (2**40, 2**40), (2**63, 0), (0, 2**62), (1,) * 40,
    ([], []), ([0], [0]), ("a", "b"), range(3), slice(1), ..., NotImplemented, object, type, np,
    print, decimal.Decimal("1.5"), fractions.Fraction(1, 3), decimal.Decimal("1e400"),
    pathlib.Path("/nowhere.npy"), np.longdouble(1), np.float16(2), np.datetime64("2020"),
    np.timedelta64(1, "s"), np.bool_(True), np.int8(-1), np.uint64(2**63), np.complex64(1),
    np.str_("sum"), np.bytes_(b"sum"), np.float64("nan"),
]  # fmt: skip

MUTABLE = [
    object,
    lambda: iter([0, 1]),
    itertools.count,
    lambda: itertools.repeat(1),
    lambda: (i for i in range(2)),
    lambda: memoryview(b"abcdefgh"),
    lambda: memoryview(bytearray(16)).cast("q"),
    lambda: bytearray(4),
    lambda: mmap.mmap(-1, 64),
    lambda: [0, 1, 2],
    lambda: [[0, 1], [2, 0]],
    lambda: {"a": [[0]]},
    lambda: _nested(100),
    lambda: _nested(2000),
    lambda: embag.QuantizedTable.from_packed(np.zeros((4, 12), np.uint8), 8, 4),
    lambda: embag.QuantizedTable.from_packed(np.zeros((0, 4), np.uint8), 4, 0),
    lambda: embag.QuantizedTable.from_int8(np.zeros((4, 3), np.int8), [1, 2, 3, 4]),
    lambda: embag.RemappedTable(np.ones((4, 3), np.float32), [3, -1, 0], [1, 2, 3], 1),
    lambda: embag.SparseRows([0], np.ones((1, 3)), (4, 3)),
    lambda: embag.Feature("a", "t"),
    lambda: embag.Feature(1, [], {}, 0.5),
    lambda: np.random.default_rng(0),
]


def _nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "g"]
DTYPES += ["F", "D", "O", "S3", "U2", "V5", "V0", "M8[s]", "m8[ns]", "M8"]
DTYPES += [">i4", ">i8", ">f4", ">f8", ">u8", "f4,i8", BFLOAT16, np.dtype(("i4", (2,)))]
DTYPES += [np.dtype([("a", "i8"), ("b", "O")]), np.dtype({"names": [], "formats": []})]
SHAPES = [(), (0,), (1,), (2,), (3,), (6,), (8,), (17,), (0, 0), (0, 5), (3, 0), (1, 1)]
SHAPES += [(3, 4), (4, 3), (10, 16), (2, 64), (2, 3, 4), (0, 2, 0), (1, 1, 1, 1)]
SHAPES += [(2**31, 0), (0, 2**56), (2**40, 0)]
# Broadcast from one entry, without memory. (2**20, 4) can be copied, the others cannot.
HUGE = [(2**20, 4), (2**31 + 1,), (2**32,), (2**31, 3), (3, 2**31), (2**40, 2**10), (2**58,)]

_MEMORY = np.random.default_rng(0).standard_normal(1 << 14)
_BYTES = np.random.default_rng(1).integers(0, 256, 1 << 16, np.uint8)
_SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-42, -3e38, 3e38, 6e4, 1e300, 5e-324])


def numbers(rng, shape, *, special=False):
    """Return float64 numbers; `special` makes some infinite, NaN, subnormal or huge."""
    n = int(np.prod(shape))
    start = rng.randrange(len(_MEMORY) - n) if n < len(_MEMORY) else 0
    values = np.resize(_MEMORY[start : start + n], n).copy()
    if special and n:
        for _ in range(rng.randrange(1, 4)):
            values[rng.randrange(n)] = _SPECIAL[rng.randrange(len(_SPECIAL))]
    return values.reshape(shape)


def random_bytes(rng, shape):
    """Return random bytes."""
    n = int(np.prod(shape))
    start = rng.randrange(len(_BYTES) - n)
    return _BYTES[start : start + n].reshape(shape).copy()


INTEGERS = [*EDGES, *map(np.int64, (0, 1, -1, 5)), np.uint8(3), np.uint64(2**64 - 1)]


def integer(rng):
    return rng.choice(INTEGERS)


def any_object(rng):
    """Return any object except arrays."""
    kind = rng.randrange(3)
    if kind == 0:
        return integer(rng)
    return rng.choice(SCALARS) if kind == 1 else rng.choice(MUTABLE + HOSTILE)()


def arrays(rng):
    """Return an array of any dtype, shape and layout."""
    dtype = np.dtype(rng.choice(DTYPES))
    if rng.randint(0, 9) == 0:
        shape = rng.choice(HUGE)
        one = np.ones((), "V1" if dtype.hasobject or dtype.subdtype else dtype)
        return np.broadcast_to(one, shape)
    array = np.zeros(rng.choice(SHAPES), dtype)
    if array.size:
        with np.errstate(all="ignore"):
            if dtype.kind in "?iuf":
                array[...] = np.arange(array.size).reshape(array.shape) % 11
            elif dtype.kind in "OSU":
                array.reshape(-1)[0] = "a"
    return layouts(rng, array)


LAYOUTS = ["fortran", "spaced", "reversed", "wide", "misaligned", "read-only", "swapped"]
LAYOUTS += ["subclass", "matrix", "masked", "map", "list", "tuple", "__array__", "buffer"]
MISREPORTING = [_WrongShape, _WrongDtype, _WrongLength]


def layouts(rng, array, ways=LAYOUTS, *, often=4):
    """Return the same values, sometimes in another layout or container."""
    if rng.randint(0, often):
        return array
    return lay_out(array, rng.choice(ways))


def lay_out(array, way):
    """Return the same values in this layout, or unchanged if that is impossible."""
    if max(array.shape, default=0) > 10**6:
        return array
    if way == "fortran":
        return np.asfortranarray(array)
    if way == "read-only":
        array = array.view()
        array.flags.writeable = False
        return array
    if way == "swapped":
        return array.astype(array.dtype.newbyteorder("S")) if array.dtype.kind in "iuf" else array
    if way == "subclass":
        return array.view(_Subclass)
    if way == "misreport":
        return array.view(MISREPORTING[array.size % 3])
    if way == "masked":
        return np.ma.masked_array(array, np.zeros(array.shape, bool))
    if way == "__array__":
        return _with(__array__=array.copy)()
    if way in ("list", "tuple") and array.ndim and array.size < 10**4 and array.dtype.kind in "iuf":
        return array.tolist() if way == "list" else tuple(array.tolist())
    if array.ndim == 0 or array.nbytes == 0 or array.size > 10**4 or array.dtype.hasobject:
        return array
    if way == "spaced":
        whole = np.zeros((2 * array.shape[0], *array.shape[1:]), array.dtype)
        whole[::2] = array
        return whole[::2]
    if way == "reversed":
        return array[::-1].copy()[::-1]
    if way == "wide":
        whole = np.zeros((*array.shape[:-1], array.shape[-1] + 3), array.dtype)
        whole[..., 1:-2] = array
        return whole[..., 1:-2]
    if way == "misaligned":
        memory = np.zeros(array.nbytes + 1, np.uint8)[1:]
        result = memory.view(array.dtype).reshape(array.shape)
        result[...] = array
        return result
    if way == "map":
        pages = mmap.mmap(-1, array.nbytes)
        result = np.frombuffer(pages, array.dtype).reshape(array.shape)
        result[...] = array
        return result
    if way == "matrix" and array.ndim == 2:
        return np.asmatrix(array)
    if way == "buffer" and array.dtype.kind in "iuf" and array.dtype.isnative:
        return memoryview(array)
    return array

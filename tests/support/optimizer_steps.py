"""A hundred batches of training, and the rules of optimizers with bounds of their rounding errors.

All numbers are multiples of powers of two, and so small that float32 has the gradient of each row
exactly, in any order of additions. What is left is the rounding of the rule.
"""

import itertools

import numpy as np

N_ROWS, DIM, N_STEPS = 6, 4, 100
OFFSETS = np.array([0, 5, 8])
ABSENT = 5  # a row that never occurs
LR, EPS, MOMENTUM = 0.125, 0.0625, 0.75
FIRST, SECOND = 0.75, 0.875  # Adam's betas
L1, L2, BETA, START = 0.5, 0.25, 0.5, 0.125  # of FTRL

UNIT = 2.0**-24  # the largest relative error of an operation in float32


def first_table():
    row, column = np.indices((N_ROWS, DIM))
    return ((11 * row + 5 * column) % 13 - 6).astype(np.float32) / 8


def batches(every_row=False):
    """Yield ids and the gradient of the output: bags begin at OFFSETS.

    Rows 0 and 1 occur several times in each batch; rows 2, 3 and 4 are often absent.
    """
    bag, column = np.indices((len(OFFSETS), DIM))
    for t in range(N_STEPS):
        ids = [0, 0, 1, 2 + t % 3, 0, 1, 1, t * t % 5, 0, 1]
        ids += [3] * (t % 7 == 0) + [4, 0] * (t % 10 == 0)
        ids += range(N_ROWS) if every_row else []
        grad = ((7 * t + 3 * bag + 5 * column + t * bag * column) % 17 - 8) / 8
        yield np.array(ids), grad.astype(np.float32)


def gradients(every_row=False):
    """Yield the rows that occur in each batch, and their gradients in float64."""
    for ids, grad in batches(every_row):
        lengths = np.diff([*OFFSETS, len(ids)])
        total = np.zeros((N_ROWS, DIM))
        np.add.at(total, ids, np.repeat(grad.astype(np.float64), lengths, axis=0))
        rows = np.unique(ids)
        yield rows, total[rows]


class Bounded:
    """Numbers in float64, and by how much the same operations in float32 may differ."""

    __array_ufunc__ = None  # so that an array leaves its operators to this class

    def __init__(self, value, error=0.0):
        self.value = np.asarray(value, np.float64)
        self.error = np.broadcast_to(error, self.value.shape).astype(np.float64)

    @classmethod
    def _rounded(cls, value, error):
        return cls(value, error + UNIT * (np.abs(value) + error))

    def __getitem__(self, rows):
        return Bounded(self.value[rows], self.error[rows])

    def __setitem__(self, rows, new):
        self.value[rows], self.error[rows] = new.value, new.error

    def __add__(self, other):
        other = _bounded(other)
        return self._rounded(self.value + other.value, self.error + other.error)

    def __sub__(self, other):
        other = _bounded(other)
        return self._rounded(self.value - other.value, self.error + other.error)

    def __mul__(self, other):
        other = _bounded(other)
        error = np.abs(self.value) * other.error + self.error * (np.abs(other.value) + other.error)
        return self._rounded(self.value * other.value, error)

    def __truediv__(self, other):
        other = _bounded(other)
        value = self.value / other.value
        error = (self.error + np.abs(value) * other.error) / (np.abs(other.value) - other.error)
        return self._rounded(value, error)

    __radd__, __rmul__ = __add__, __mul__

    def __rtruediv__(self, other):
        return _bounded(other) / self

    def sqrt(self):
        value = np.sqrt(self.value)
        return self._rounded(value, value - np.sqrt(np.maximum(self.value - self.error, 0)))

    def moved(self, target, share):
        """self + share * (target - self), rounded three times.

        Term by term, the error of self would count twice and grow without end: it shrinks.
        """
        way = target.value - self.value
        error = (1 - share) * self.error + share * target.error
        error = error + 2 * UNIT * share * (np.abs(way) + self.error + target.error) * (1 + UNIT)
        return self._rounded(self.value + share * way, error)

    def clip(self, most):
        return Bounded(np.clip(self.value, -most, most), self.error)

    def mean(self):
        """The mean of each row of positive numbers, added in any order."""
        value = self.value.mean(axis=1, keepdims=True)
        error = self.error.mean(axis=1, keepdims=True)
        return Bounded(value, error + (self.value.shape[1] + 1) * UNIT * (value + error))


def _bounded(number):
    return number if isinstance(number, Bounded) else Bounded(number)


def sgd(w, g):
    return (w - LR * g,)


def momentum(w, g, b):
    b = MOMENTUM * b + g
    return w - LR * b, b


def adagrad(w, g, s):
    s = s + g * g
    return w - LR * (g / (s.sqrt() + EPS)), s


def row_wise_adagrad(w, g, s):
    s = s + (g * g).mean()
    return w - LR / (s.sqrt() + EPS) * g, s


def adam():
    """Return the rule, which counts its steps."""
    count = itertools.count(1)

    def rule(w, g, m, v):
        t = next(count)
        size = LR * np.sqrt(1 - SECOND**t) / (1 - FIRST**t)
        m = m.moved(g, 1 - FIRST)
        v = v.moved(g * g, 1 - SECOND)
        return w - Bounded(size, UNIT * size) * (m / (v.sqrt() + EPS)), m, v

    return rule


def ftrl(w, g, z, n):
    after = n + g * g
    z = z + (g - (after.sqrt() - n.sqrt()) / LR * w)
    w = (z.clip(L1) - z) / ((BETA + after.sqrt()) / LR + 2 * L2)
    return w, z, after


def bounded_steps(rule, starts=(), every_row=False):
    """Return the table and the states after all steps, with their bounds.

    `starts` are the shape and the first value of each state.
    """
    arrays = [Bounded(first_table()), *(Bounded(np.full(shape, x)) for shape, x in starts)]
    for rows, gradient in gradients(every_row):
        changed = rule(arrays[0][rows], Bounded(gradient), *(array[rows] for array in arrays[1:]))
        for array, new in zip(arrays, changed, strict=True):
            array[rows] = new
    return arrays


def assert_within_bounds(ours, theirs, bounded):
    """Compare two computations in float32, each within its bound of the exact result."""
    for a, b, exact in zip(ours, theirs, bounded, strict=True):
        exact_value = exact.value.reshape(np.shape(a))
        error = exact.error.reshape(np.shape(a))
        assert error.max() < 1e-3 * np.ptp(exact_value)  # the bounds say something
        assert (np.abs(a - exact_value) <= error).all()
        assert (np.abs(np.reshape(b, np.shape(a)) - a) <= 2 * error).all()

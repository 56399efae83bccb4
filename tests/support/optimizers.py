"""Optimizers to test, each with options that all matter; their definitions, and gradients."""

import numpy as np

from embag import SparseRows, optim

N_ROWS = 9


def make_sgd(table, **options):
    return optim.SGD(table, 0.25, **options)


def make_momentum(table, **options):
    return optim.SGD(table, 0.25, momentum=0.75, **options)


def make_adagrad(table, **options):
    return optim.Adagrad(table, 0.25, lr_decay=0.5, eps=1e-3, **options)


def make_row_wise(decay):
    def make(table, **options):
        return optim.RowWiseAdagrad(
            table, 0.25, eps=1e-3, weight_decay=0.125, weight_decay_mode=decay, **options
        )

    return make


def make_adam(table, **options):
    return optim.Adam(table, 0.25, (0.75, 0.875), 1e-3, **options)


def make_ftrl(table, **options):
    return optim.FTRL(table, 0.25, l1=0.125, l2=0.5, beta=0.5, **options)


OPTIMIZERS = {
    "sgd": make_sgd,
    "momentum": make_momentum,
    "adagrad": make_adagrad,
    "row wise": make_row_wise("none"),
    "row wise, l2": make_row_wise("l2"),
    "row wise, decoupled": make_row_wise("decoupled"),
    "adam": make_adam,
    "ftrl": make_ftrl,
}


def mean_square(g):
    """Return the mean of the squares of a row: 32 lanes in float64, folded in halves."""
    lanes = np.zeros(32)
    for d, x in enumerate(g.astype(np.float64)):
        lanes[d % 32] += x * x
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    return lanes[0] / len(g)


def expected_step(name, w, states, g, t):
    """Change a row and its states by definition, in the dtype of the table."""
    kind = w.dtype.type
    lr, eps = kind(0.25), kind(1e-3)
    if name == "sgd":
        w -= lr * g
    elif name == "momentum":
        (b,) = states
        b[:] = kind(0.75) * b + g
        w -= lr * b
    elif name == "adagrad":
        (s,) = states
        s += g * g
        w -= kind(0.25 / (1 + (t - 1) * 0.5)) * (g / (np.sqrt(s) + eps))
    elif name.startswith("row wise"):
        (s,) = states
        decay = kind(0.125)
        s += kind(mean_square(g + decay * w if "l2" in name else g))
        scale = lr / (np.sqrt(s[0]) + eps)
        keep = kind(1)
        if "l2" in name:
            keep = kind(1) - scale * decay
        elif "decoupled" in name:
            keep = kind(1) - lr * decay
        w[:] = keep * w - scale * g
    elif name == "adam":
        m, v = states
        first, second = kind(0.75), kind(0.875)
        m += (kind(1) - first) * (g - m)
        v += (kind(1) - second) * (g * g - v)
        size = kind(0.25 * np.sqrt(1 - 0.875**t) / (1 - 0.75**t))
        w -= size * (m / (np.sqrt(v) + eps))
    else:
        z, n = states
        before = np.sqrt(n)
        n += g * g
        after = np.sqrt(n)
        z += g - (after - before) / lr * w
        w[:] = (np.clip(z, kind(-0.125), kind(0.125)) - z) / ((kind(0.5) + after) / lr + kind(1))


def gradient(rng, dim, dtype):
    rows = np.flatnonzero(rng.random(N_ROWS) < 0.6)
    values = rng.standard_normal((len(rows), dim)).astype(dtype)
    return SparseRows(rows, values, (N_ROWS, dim))

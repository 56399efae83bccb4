"""Optimizers to test, each with options that all matter, and gradients for them."""

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


def gradient(rng, dim, dtype):
    rows = np.flatnonzero(rng.random(N_ROWS) < 0.6)
    values = rng.standard_normal((len(rows), dim)).astype(dtype)
    return SparseRows(rows, values, (N_ROWS, dim))

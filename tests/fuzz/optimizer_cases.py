"""Sound updates of optimizers: each has the bits of a backward pass and a step."""

import numpy as np

import embag

from .checked_call import Case
from .lookup_cases import FLOATS, NARROW, RAISES, backward_arguments, check_same_bits, plain

_RULES = [
    (embag.optim.SGD, {"lr": 0.5}),
    (embag.optim.SGD, {"lr": 0.5, "momentum": 0.5}),
    (embag.optim.Adagrad, {"lr_decay": 0.1}),
    (embag.optim.RowWiseAdagrad, {}),
    (embag.optim.RowWiseAdagrad, {"weight_decay": 0.1, "weight_decay_mode": "l2"}),
    (embag.optim.RowWiseAdagrad, {"weight_decay": 0.1, "weight_decay_mode": "decoupled"}),
    (embag.optim.Adam, {}),
    (embag.optim.FTRL, {"l1": 0.1, "l2": 0.1, "beta": 0.5}),
]


def optimizer_cases(rng):
    """Return a call of `Optimizer.update`."""
    call = backward_arguments(rng, (*FLOATS, *NARROW))
    rows = np.array(plain(call.pop("weight")), order="C")
    call.pop("sparse", None)
    if call.get("wrt") == "per_sample_weights":
        call["wrt"] = None
    if call["offsets"] is not None and not call.get("include_last_offset", False):
        replace_offsets(rng, call)
    options = {"frozen": rng.choice([None, np.arange(len(rows)) % 3 == 0])}
    if rows.itemsize == 2 and rng.random() < 0.5:
        options |= {"stochastic_rounding": True, "seed": rng.randrange(2**64)}
    rule, numbers = rng.choice(_RULES)
    apart = np.zeros((len(rows), rows.shape[1] + rng.choice([0, 0, 3])), rows.dtype)
    table = apart[:, : rows.shape[1]]
    table[...] = rows
    optimizer, other = (rule(array, **numbers, **options) for array in (table, rows))

    def update(**arguments):
        try:
            return optimizer.update(**arguments)
        except Exception:
            assert optimizer.n_steps == 0
            assert same_bits(optimizer, other), "a call that raised changed something"
            raise

    def check(result, given):
        given = {"wrt": "weight", **given}
        grads = embag.embedding_bag_backward(weight=rows, sparse=True, **given)
        other.step(grads.weight)
        check_same_bits(plain(table), rows)
        for name, state in other.states.items():
            check_same_bits(optimizer.states[name], state)
        assert (result is None) == (grads.per_sample_weights is None)
        if result is not None:
            check_same_bits(result, grads.per_sample_weights)

    return Case("optim.Optimizer.update", update, call, check, RAISES)


def replace_offsets(rng, call):
    """Sometimes give the bags by lengths or segment ids instead of offsets."""
    ids, offsets = plain(call["input"]), plain(call["offsets"]).astype(np.int64)
    sizes = np.diff(np.append(offsets, len(ids)))
    how = rng.choice(["offsets", "offsets", "lengths", "segment_ids"])
    if how != "offsets":
        call["offsets"] = None
        call["include_last_offset"] = False
        call[how] = sizes if how == "lengths" else np.repeat(np.arange(len(sizes)), sizes)
    if how == "segment_ids":
        call["n_bags"] = len(sizes)


def same_bits(optimizer, other):
    """Return whether the tables and the states of two optimizers have the same bits."""
    pairs = [(optimizer.table, other.table)]
    pairs += [(state, other.states[name]) for name, state in optimizer.states.items()]
    return all(one.tobytes() == two.tobytes() for one, two in pairs)

"""Sound calls of `EmbeddingBagCollection`, and checks of their results."""

import copy
import os
import pickle
from collections.abc import Mapping

import numpy as np

import embag

from .checked_call import Case, memory_of, same
from .file_cases import check_equal, folder
from .lookup_cases import (
    FLOATS,
    MODES,
    MOST,
    NARROW,
    RAISES,
    THREADS,
    bags,
    check_same_bits,
    count_invalid,
    expected_forward,
    plain,
    remapped,
    rows_of,
    sample_weights,
    tables,
    with_invalid_ids,
)
from .values import layouts, numbers


def parts(rng, draw=tables):
    """Return tables and features for a collection."""
    named = {f"t{i}": draw(rng) for i in range(rng.randint(0, 3))}
    named |= {name: remapped(rng, table) for name, table in named.items() if rng.random() < 0.15}
    features = []
    all_sums = rng.random() < 0.5
    for i in range(rng.randint(0, 4) if named else 0):
        table = rng.choice(list(named))
        n_rows = rows_of(named[table])
        padding = rng.choice([None, None, 0, -1]) if n_rows else None
        mode = "sum" if all_sums else rng.choice(MODES)
        default = rng.choice([None, None, 0]) if n_rows else None
        invalid = rng.choice([None, None, "skip", "raise"])
        if rng.random() < 0.1:
            mode, default = "none", None
        feature = embag.Feature(f"f{i}", table, mode, padding, default, invalid, rng.random() < 0.1)
        features.append(feature)
    return named, features


def pooled(ebc):
    """Return the features with bags."""
    return [feature for feature in ebc.features if feature.mode != "none"]


def without_ids(ebc):
    """Return the pooled result of a call without ids."""
    if len(pooled(ebc)) == len(ebc.features):
        return ebc(np.zeros(0, np.int64), np.zeros(1, np.int64))
    return ebc({feature.name: np.zeros((0, 2), np.int64) for feature in ebc.features})[0]


def policy(ebc, feature):
    """Return what is done with ids of a feature that are out of range."""
    return ebc.invalid if feature.invalid is None else feature.invalid


def check_made(ebc, call):
    assert type(ebc) is embag.EmbeddingBagCollection
    assert ebc.dim == sum(columns.stop - columns.start for columns in ebc.slices.values())
    assert list(ebc.slices) == [feature.name for feature in pooled(ebc)]
    assert "EmbeddingBagCollection(" in repr(ebc)
    assert without_ids(ebc).shape == (0, ebc.dim)


def embedding_bag_collection_cases(rng):
    named, features = parts(rng)
    how = rng.randint(0, 9)
    if how == 0:
        return Case(
            "EmbeddingBagCollection",
            embag.EmbeddingBagCollection,
            {
                "tables": named,
                "features": rng.choice([features, tuple(features)]),
                "invalid": rng.choice(["raise", "skip"]),
            },
            check_made,
            (TypeError, ValueError),
        )
    ebc = embag.EmbeddingBagCollection(named, features, invalid=rng.choice(["raise", "skip"]))
    if how == 1:
        ebc = pickle.loads(pickle.dumps(ebc))
    memory = tuple(named.values())
    n_bags = rng.choice([0, 1, 1, 2, 4])
    if how == 2:
        out = np.zeros((n_bags, ebc.dim), rng.choice(["f4", "f8", "i4"]))
        return Case(
            "EmbeddingBagCollection.split", ebc.split, {"out": out},
            lambda result, call: check_split(ebc, result, call), (TypeError, ValueError),
        )  # fmt: skip
    if how == 3 and named:
        return replace_case(rng, ebc)
    by_name = rng.random() < 0.5 or len(pooled(ebc)) < len(features)
    arguments = named_arguments if by_name else flat_arguments
    call = arguments(rng, ebc, n_bags)
    if rng.random() < 0.3:
        call["out"] = np.full((n_bags if pooled(ebc) else 0, ebc.dim), 7, np.float32)
    call["num_threads"] = rng.choice(THREADS)
    if rng.random() < 0.1:
        call["return_n_valid"] = rng.random() < 0.9
    return Case(
        "EmbeddingBagCollection.__call__",
        ebc,
        call,
        lambda result, given: check_pooled(ebc, result, given),
        RAISES,
        writes=("out",),
        hidden=memory,
    )


def trainable(rng):
    """Return a table that an optimizer can change."""
    return np.array(plain(tables(rng, (*FLOATS, *NARROW))), order="C")


def gradient_cases(rng):
    """Return a call of `backward` or `update`; an update is a backward pass and steps."""
    named, features = parts(rng, trainable)
    invalid = rng.choice(["raise", "skip"])
    before = copy.deepcopy(named)
    ebc, other = (
        embag.EmbeddingBagCollection(tables_of_one, features, invalid=invalid)
        for tables_of_one in (named, before)
    )
    n_bags = rng.choice([0, 1, 2, 4])
    arguments = named_arguments if len(pooled(ebc)) < len(features) else flat_arguments
    call = arguments(rng, ebc, n_bags)
    grad = numbers(rng, (n_bags if pooled(ebc) else 0, ebc.dim))
    rows = {
        feature.name: numbers(
            rng, (*np.shape(call["values"][feature.name]), dim_of(named[feature.table]))
        )
        for feature in features
        if feature.mode == "none"
    }
    call |= {"grad_output": (grad, rows) if rows else grad, "num_threads": rng.choice(THREADS)}
    if rng.random() < 0.5:
        return Case(
            "EmbeddingBagCollection.backward",
            ebc.backward,
            {**call, "wrt": rng.choice([None, "weight"])},
            lambda result, given: check_gradients(ebc, result),
            RAISES,
            hidden=tuple(named.values()),
        )
    trained = [name for name in named if rng.random() < 0.8]
    optimizers, others = (
        {name: embag.optim.Adagrad(collection.tables[name], lr=0.5) for name in trained}
        for collection in (ebc, other)
    )
    call |= {"optimizers": optimizers, "wrt": rng.choice(["weight", "weight", None])}

    def update(**arguments):
        try:
            return ebc.update(**arguments)
        except Exception:
            assert same(memory_of(dict(ebc.tables)), memory_of(dict(other.tables)))
            assert not any(optimizer.n_steps for optimizer in optimizers.values())
            raise

    def check(result, given):
        if given["optimizers"] is not optimizers:
            return
        options = {name: given[name] for name in given if name not in ("optimizers", "wrt")}
        grads = other.backward(**options)
        for name, grad in grads.weight.items():
            if name in others:
                others[name].step(grad)
        assert same(memory_of(dict(ebc.tables)), memory_of(dict(other.tables)))
        assert (result is None) == (given.get("wrt", "weight") == "weight")

    return Case("EmbeddingBagCollection.update", update, call, check, RAISES)


def saving_cases(rng):
    """Return a call of `save` or `load`; what was saved looks up the same rows."""
    named, features = parts(rng)
    ebc = embag.EmbeddingBagCollection(named, features, invalid=rng.choice(["raise", "skip"]))
    path = folder() / "collection"

    def check(loaded):
        assert (loaded.features, loaded.invalid) == (ebc.features, ebc.invalid)
        for name, table in loaded.tables.items():
            check_equal(table, ebc.tables[name])

    if rng.random() < 0.5:
        ebc.save(path)
        call = {"folder": rng.choice([path, str(path)]), "memory": rng.choice(["map", "copy"])}
        call["verify"] = rng.choice([True, False])
        return Case(
            "EmbeddingBagCollection.load",
            embag.EmbeddingBagCollection.load,
            call,
            lambda result, given: check(result),
            (*RAISES, OSError, ImportError),
        )

    def save(**given):
        place = given.get("folder")
        if type(place) is str:  # a corrupted one makes no folder elsewhere
            given["folder"] = os.path.join(path, place)
        ebc.save(**given)
        return given["folder"]

    return Case(
        "EmbeddingBagCollection.save",
        save,
        {"folder": rng.choice([path, str(path)])},
        lambda saved, given: check(embag.EmbeddingBagCollection.load(saved)),
        (*RAISES, OSError, ImportError),
    )


def dim_of(table):
    return table.shape[1] if isinstance(table, np.ndarray) else table.table.shape[1]


def check_gradients(ebc, result):
    assert type(result) is embag.EmbeddingBagGrads
    for name, grad in result.weight.items():
        table = ebc.tables[name]
        rows = table if isinstance(table, np.ndarray) else table.table
        assert type(grad) is embag.SparseRows
        assert grad.shape == rows.shape
        assert grad.values.dtype == ("f8" if rows.dtype == "f8" else "f4")
    assert result.per_sample_weights.keys() <= ebc.slices.keys()


def replace_case(rng, ebc):
    name = rng.choice(list(ebc.tables))
    old = ebc.tables[name]
    drawn = (tables(rng) for _ in range(20))
    fits = [table for table in drawn if table.shape[1] == old.shape[1] and rows_of(table)]
    # A table without rows cannot have a padding row.
    call = {"name": name, "table": fits[0] if fits else old}

    def check(result, given):
        assert result is None
        assert ebc.tables[given["name"]] is given["table"]
        assert list(ebc.slices) == [feature.name for feature in pooled(ebc)]
        assert without_ids(ebc).shape == (0, ebc.dim)

    return Case("EmbeddingBagCollection.replace", ebc.replace, call, check, (TypeError, ValueError))


def flat_arguments(rng, ebc, n_bags):
    """Return the concatenated ids of all features."""
    ids, lengths = [], []
    for feature in ebc.features:
        some = bags(rng, rows_of(ebc.tables[feature.table]), n_bags, two_d=False, ilo=False)
        offsets, flat = plain(some.offsets), plain(some.input)
        flat = flat if flat.size else flat.astype(np.int64)
        if policy(ebc, feature) != "raise":
            flat = with_invalid_ids(rng, flat)
        lengths += np.diff(np.append(offsets, len(flat)).astype(np.int64)).tolist()
        ids.append(flat.astype(np.int64))
    dtypes = ["i8", "i8", "i4", ">i4"]
    if all(
        policy(ebc, feature) == "raise" for feature in ebc.features
    ):  # NumPy converts a list with numbers beyond int64 to floats
        dtypes.append("u8")
    values = np.concatenate([*ids, np.zeros(rng.choice([0, 0, 2]), np.int64)])
    values = values.astype(rng.choice(dtypes))
    offsets = np.cumsum([0, *lengths]).astype(rng.choice(dtypes))
    ways = ["spaced", "misaligned", "read-only", "subclass", "list", "buffer"]
    call = {"values": layouts(rng, values, ways, often=3), "offsets": layouts(rng, offsets, ways)}
    if all(feature.mode == "sum" for feature in ebc.features) and rng.random() < 0.5:
        call["per_sample_weights"] = sample_weights(rng, values.shape)
    return call


def named_arguments(rng, ebc, n_bags):
    """Return ids by feature name."""
    ilo = rng.random() < 0.3
    ids, weights = {}, {}
    for feature in ebc.features:
        n_rows = rows_of(ebc.tables[feature.table])
        some = bags(rng, n_rows, n_bags, ilo=ilo)
        given = some.input
        if feature.mode == "none":  # of the ids of bags some may be in none, and of any value
            n = rng.choice([0, 1, 6]) if n_rows else 0
            given = np.array([rng.randrange(n_rows) for _ in range(n)], "i8")
            given = given.reshape(rng.choice([(n,), (1, n), (n, 1, 1)]))
        if policy(ebc, feature) != "raise" and rng.random() < 0.5:
            given = with_invalid_ids(rng, given)
        if feature.mode == "none":
            given = layouts(rng, given, ["spaced", "misaligned", "read-only", "subclass"])
        elif some.offsets is not None:
            given = given, some.offsets
        elif isinstance(given, tuple):  # a tuple of two rows would be an (ids, offsets) pair
            given = list(given)
        ids[feature.name] = given
        if feature.mode == "sum" and rng.random() < 0.3:
            weights[feature.name] = sample_weights(rng, some.shape)
    call = {"values": ids, "include_last_offset": ilo}
    if weights:
        call["per_sample_weights"] = weights
    return call


def check_split(ebc, result, call):
    assert list(result) == list(ebc.slices)
    for name, columns in result.items():
        assert columns.shape[-1] == ebc.slices[name].stop - ebc.slices[name].start
        assert np.may_share_memory(columns, call["out"]) or columns.nbytes == 0


def check_pooled(ebc, result, call):
    features = pooled(ebc)
    if call.get("return_n_valid", False):
        *result, n_valid = result
        assert n_valid.shape == (len(result[0]), len(features))
        result = result[0] if len(result) == 1 else tuple(result)
    if len(features) < len(ebc.features):
        result, rows = result
        check_unpooled(ebc, rows, call["values"])
    out = call.get("out")
    assert out is None or result is out
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    assert result.shape[1] == ebc.dim
    values, weights = call["values"], call.get("per_sample_weights")
    if not isinstance(values, Mapping):
        ids, offsets = plain(values), plain(call["offsets"]).astype(np.int64)
        sample = None if weights is None else plain(weights)
    n_bags = len(result)
    if n_bags > MOST:
        return
    for f, feature in enumerate(features):
        lookup = {"mode": feature.mode, "padding_idx": feature.padding_idx}
        if isinstance(values, Mapping):
            given = values[feature.name]
            pair = given if isinstance(given, tuple) else (given, None)
            lookup["input"], lookup["offsets"] = pair
            lookup["include_last_offset"] = call.get("include_last_offset", False)
            if weights is not None and weights.get(feature.name) is not None:
                lookup["per_sample_weights"] = weights[feature.name]
        else:
            bounds = offsets[f * n_bags : (f + 1) * n_bags + 1]
            lookup["input"], lookup["offsets"] = ids, bounds
            lookup["include_last_offset"] = True
            # The reference counts from 0.
            lookup["input"] = ids[bounds[0] : bounds[-1]]
            lookup["offsets"] = bounds - bounds[0]
            if sample is not None:
                lookup["per_sample_weights"] = sample[bounds[0] : bounds[-1]]
        if plain(lookup["input"]).dtype == object:
            continue  # lists with nulls: the reference has none
        table = ebc.tables[feature.table]
        table = in_float32(table)
        lookup |= {"weight": table, "invalid": policy(ebc, feature)}
        lookup |= {"default_idx": feature.default_idx, "normalize": feature.normalize}
        count = count_invalid(lookup)
        assert count in (None, ebc.n_invalid[feature.name]), (feature, count, ebc.n_invalid)
        expected = expected_forward(lookup)
        if expected is not None:
            check_same_bits(result[:, ebc.slices[feature.name]], expected[0])


def in_float32(table):
    """Return a table as a collection reads it."""
    with np.errstate(all="ignore"):
        if isinstance(table, np.ndarray):
            return plain(table).astype(np.float32)
        if isinstance(table, embag.RemappedTable):
            scales = None if table.scales is None else table.scales.astype(np.float32)
            return embag.RemappedTable(
                in_float32(table.table), table.index_map, scales, table.first_id
            )
    return table


def check_unpooled(ebc, rows, values):
    """Compare the rows of features without bags with those of `embedding`."""
    unpooled = [feature for feature in ebc.features if feature.mode == "none"]
    assert list(rows) == [feature.name for feature in unpooled]
    for feature in unpooled:
        table, ids = ebc.tables[feature.table], values[feature.name]
        table = in_float32(table)
        found, count = rows[feature.name], ebc.n_invalid[feature.name]
        assert found.dtype == np.float32
        expected = embag.embedding(ids, table, invalid=policy(ebc, feature))
        assert found.shape == expected.shape
        if not feature.normalize:
            check_same_bits(found, expected)
        if policy(ebc, feature) == "raise":
            assert count == 0


def feature_cases(rng):
    """A Feature accepts anything; the collection checks it."""

    def check(result, call):
        assert len(result) == 7

    call = {"name": "a", "table": "t", "mode": rng.choice(MODES), "padding_idx": 0}
    call |= {"default_idx": 0, "invalid": "skip", "normalize": False}
    return Case("Feature", embag.Feature, call, check, (TypeError,))

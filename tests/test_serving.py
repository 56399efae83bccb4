"""examples/serving, on loopback: its answers are NumPy's, bad input is blamed by embag's words."""

import asyncio
import http.client
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import embag

EXAMPLE = Path(__file__).parent.parent / "examples" / "serving"
N_ROWS = 50

# Looked for, not imported: only the service's own process needs them.
if any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")):
    pytest.skip("the extra `serving` is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def example():
    """Import a module of the example by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLE))
        yield importlib.import_module
        for name in ("load", "make_tables", "measure"):
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


def post(port, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", "/score", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.load(answer)
    finally:
        connection.close()


def score(folder, user):
    """Return the definition of the answer."""
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


@pytest.mark.parametrize(
    ("name", "ids", "message"),
    [
        ("feature_99", [1], "values must have names of features as keys, got 'feature_99'"),
        ("feature_03", None, "values must have ids for every feature, got none for 'feature_03'"),
        (
            "feature_03",
            [1, N_ROWS],
            "feature 'feature_03': ids[0, 1] = 50 is out of range for a table of 50 rows (bag 0)",
        ),
        (
            "feature_25",
            [-1],
            "feature 'feature_25': ids[0, 0] = -1 is out of range for a table of 50 rows (bag 0)",
        ),
        ("feature_00", [2**70], "feature 'feature_00': ids must be integers, got dtype object"),
    ],
)
def test_bad_features_are_blamed(port, user, name, ids, message):
    bad = {**user, name: ids}
    if ids is None:
        del bad[name]
    assert post(port, json.dumps(bad)) == (422, {"detail": message})
    assert post(port, json.dumps(user))[0] == 200


@pytest.mark.parametrize("body", ["", "{", "[]", '{"feature_00": 1}', "9" * 5000])
def test_bad_bodies_are_refused(port, body):
    assert post(port, body)[0] in (400, 422)


@pytest.mark.parametrize("ids", [[1.0], ["1"], [True], [None], [[1]]])
def test_ids_are_integers(port, user, ids):
    status, answer = post(port, json.dumps({**user, "feature_00": ids}))
    assert status == 422
    assert "valid integer" in answer["detail"][0]["msg"]


def test_a_service_that_does_not_start_tells_why(example, tmp_path):
    service = example("measure").running("app", tmp_path)
    with pytest.raises(RuntimeError, match=r"dense\.npz"):
        service.__enter__()

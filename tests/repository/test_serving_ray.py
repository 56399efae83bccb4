"""The service over sharded tables: every score is right, whatever is replaced or killed.

All of it runs once, on three nodes of Ray. What a replica answers is tested in this process.
"""

import asyncio
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import run_python
from shards import cut_plan, local_shards

import embag

EXAMPLES = Path(__file__).parents[2] / "examples"
N_ROWS = 50

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE:FutureWarning"),
]
serve = pytest.importorskip("ray.serve")


def test_the_demo():
    demo = EXAMPLES / "serving_ray" / "demo.py"
    process = run_python(demo, "--rows", 300, "--requests", 60, "--port", 8137, timeout=120)
    lines = process.stdout.splitlines()  # some of them are Ray's
    assert "Plan: 26 tables on 3 shards" in lines
    for part in (
        "1 connections",
        "8 connections",
        "while a table was replaced",
        "while an actor was killed",
        "while a node was killed",
    ):
        start = f"{part}: 60 requests, 0 failed, all scores right; p50 "
        assert any(line.startswith(start) for line in lines), process.stdout
    assert "trained 3 steps of Adagrad, saved, trained on, and restored them" in lines


@pytest.fixture(scope="module")
def example():
    """Return a function that imports a module of the examples."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("serving", "serving_ray"):
            patch.syspath_prepend(str(EXAMPLES / folder))
        yield importlib.import_module
        for name in ("compare", "demo", "load", "make_tables", "measure", "service"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(example, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    example("make_tables").make(folder, N_ROWS)
    return folder


@pytest.fixture
def scorer(example, folder, monkeypatch):
    """What a replica runs, but for the batches, with shards in this process."""
    service = example("service")
    with local_shards(monkeypatch):
        tables = {path.stem: embag.load_table(path) for path in folder.glob("*.safetensors")}
        ebc = service.make_collection(folder, plan=cut_plan(tables, 1))
        scorer = service.Scorer.func_or_class(ebc, folder / "dense.npz")
        score_batch = service.Scorer.func_or_class.score.__wrapped__

        async def score(user):
            (result,) = await score_batch(scorer, [user])
            return result

        scorer.score = score
        yield scorer


@pytest.fixture
def user(example):
    (user,) = example("make_tables").make_requests(1, N_ROWS)
    return user


def ask(scorer, body, method="POST"):
    """Return the status and the object that a replica answers."""
    from starlette.requests import Request  # noqa: PLC0415

    async def receive():
        return {"type": "http.request", "body": body.encode()}

    request = Request({"type": "http", "method": method, "headers": []}, receive)
    answer = asyncio.run(scorer(request))
    return answer.status_code, json.loads(answer.body)


def test_scores(example, scorer, folder, user):
    (expected,) = example("demo").Local(folder).scores([user])
    status, answer = ask(scorer, json.dumps(user))
    assert status == 200
    np.testing.assert_allclose(answer["score"], expected, rtol=1e-5)


def test_invalid_ids_are_skipped_and_counted(scorer, user):
    expected = ask(scorer, json.dumps(user))
    large = {**user, "feature_03": [N_ROWS, *user["feature_03"], 2**70, -1]}
    assert ask(scorer, json.dumps(large)) == expected
    n_invalid = ask(scorer, "", "GET")[1]["n_invalid"]
    assert n_invalid == {**dict.fromkeys(user, 0), "feature_03": 3}


@pytest.mark.parametrize("body", ["", "{", "9" * 5000, "[]", "null"])
def test_bad_bodies_are_refused(scorer, body):
    status, answer = ask(scorer, body)
    assert status == 422
    assert answer["detail"]


@pytest.mark.parametrize(
    ("name", "ids", "message"),
    [
        ("feature_99", [1], "request must have names of features as keys, got 'feature_99'"),
        ("feature_03", None, "request must have ids for every feature, got none for 'feature_03'"),
        ("feature_03", 1, "feature 'feature_03' must have a list of integers, got 1"),
        ("feature_03", [1.0], "feature 'feature_03' must have a list of integers, got [1.0]"),
        ("feature_03", [True], "feature 'feature_03' must have a list of integers, got [True]"),
    ],
)
def test_errors_name_bad_features(scorer, user, name, ids, message):
    bad = {**user, name: ids}
    if ids is None:
        del bad[name]
    assert ask(scorer, json.dumps(bad)) == (422, {"detail": message})


def test_a_lost_shard_is_named(scorer, user):
    def fail(method, shard):
        if shard == 1:
            raise OSError("planted")

    scorer.ebc._actors.before = fail
    expected = 503, {"detail": "shard 1 failed: OSError: planted"}
    assert ask(scorer, json.dumps(user)) == expected


def test_a_request_waits_a_limited_time(example, scorer, user, monkeypatch):
    async def score(user):
        await asyncio.sleep(60)

    scorer.score = score
    monkeypatch.setattr(example("service"), "SECONDS_PER_REQUEST", 0.01)
    expected = 503, {"detail": "no answer within 0.01 seconds"}
    assert ask(scorer, json.dumps(user)) == expected

"""Shards that are actors of Ray, on three nodes of one machine."""

import asyncio
import gc
import os
import re
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from ray_nodes import ADDRESSES

import embag
from embag import Feature, optim
from embag.ray import Pool, ShardedCollection, ShardError, nodes, plan

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's own sockets and files
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context"),
]

SCALING = Path(__file__).parents[2] / "docs" / "scaling.md"
FEATURES = [Feature("x", "a"), Feature("y", "b", "mean")]
VALUES = {"x": [[1, 999], [2, 3]], "y": [[5], [6]]}


def cut_plan(files):
    """Return a plan with a shard on each node; both tables are cut."""
    return plan(files, dict.fromkeys(ADDRESSES, 11_000))


def node_of(shard):
    """Return the address of the node of an actor."""
    where = shard.__ray_call__.remote(lambda _: ray.util.get_node_ip_address())
    return ray.get(where, timeout=20)


@pytest.mark.usefixtures("cluster")
def test_shards_are_on_the_nodes_of_the_plan(files):
    assert sorted(nodes()) == ADDRESSES
    local = embag.EmbeddingBagCollection(
        {name: embag.load_table(path) for name, path in files.items()}, FEATURES
    )
    for found in (None, cut_plan(files)):
        with ShardedCollection(files, FEATURES, plan=found) as sharded:
            assert sorted(node.name for node in sharded.plan.nodes) == ADDRESSES
            for node, handle in zip(sharded.plan.nodes, sharded._actors._handles, strict=True):
                assert node_of(handle) == node.name
            np.testing.assert_array_equal(sharded(VALUES), local(VALUES))
    with ShardedCollection(files, FEATURES, n_shards=4) as sharded:
        assert len(sharded.plan.nodes) == 4
        np.testing.assert_array_equal(sharded(VALUES), local(VALUES))


@pytest.mark.usefixtures("cluster")
def test_tables_in_memory_and_updates(tmp_path):
    rng = np.random.default_rng(0)
    tables = {"a": rng.standard_normal((1000, 4)).astype(np.float32)}
    tables["b"] = embag.quantize(tables["a"])
    places = [(address, 12_000) for address in ADDRESSES]
    local = embag.EmbeddingBagCollection({**tables, "a": tables["a"].copy()}, FEATURES)
    optimizers = {"a": optim.Adagrad(local.tables["a"], lr=0.1)}
    rules = {"a": partial(optim.Adagrad, lr=0.1)}
    with ShardedCollection(tables, FEATURES, plan=plan(tables, places), memory="copy") as sharded:
        assert len(sharded.plan.blocks["a"]) > 1
        for _ in range(3):
            grad = rng.standard_normal((2, 8))
            local.update(grad, VALUES, optimizers=optimizers)
            sharded.update(grad, VALUES, optimizers=rules)
        np.testing.assert_allclose(sharded(VALUES), local(VALUES), rtol=1e-6)
        sharded.save(tmp_path)
        saved = sharded(VALUES)
        sharded.update(grad, VALUES, optimizers=rules)
        sharded.restore(tmp_path)
        np.testing.assert_array_equal(sharded(VALUES), saved)


@pytest.mark.usefixtures("cluster")
def test_a_hundred_lookups_in_an_event_loop(files):
    with ShardedCollection(files, FEATURES, plan=cut_plan(files)) as sharded:

        async def run():
            calls = [asyncio.create_task(sharded.lookup(VALUES)) for _ in range(100)]
            await asyncio.sleep(0)
            for call in calls[::3]:
                call.cancel()
            return await asyncio.gather(*calls, return_exceptions=True)

        found = asyncio.run(run())
        assert sum(isinstance(one, asyncio.CancelledError) for one in found) == 34
        expected = sharded(VALUES)
        for one in found:
            if not isinstance(one, asyncio.CancelledError):
                np.testing.assert_array_equal(one, expected)
        assert sharded._actors._waiting == [0] * 3


@pytest.mark.usefixtures("cluster")
def test_replacements_while_threads_and_other_processes_look_up(files, tmp_path):
    last = 20

    def look_up(collection):
        """Return the versions that a lookup has seen in its bags."""
        return {row[0] / 2 for row in collection(VALUES).tolist()}

    @ray.remote(num_cpus=0)
    class Reader:
        def __init__(self, copy):
            self.copy = copy
            self.seen = look_up(copy)

        def is_ready(self):
            return True

        def read_until_the_last(self):
            while last not in self.seen:
                self.seen |= look_up(self.copy)
            return self.seen

    def read_until_the_last():
        try:
            while last not in seen:
                seen.update(look_up(sharded))
        except Exception as error:
            errors.append(error)

    found = cut_plan(files)  # its shards have space for a second table beside the first
    found = replace(found, nodes=tuple(node._replace(n_bytes=10**6) for node in found.nodes))
    with ShardedCollection(files, FEATURES, plan=found) as sharded:
        seen, errors = look_up(sharded), []
        readers = [Reader.remote(sharded) for _ in range(2)]
        ray.get([reader.is_ready.remote() for reader in readers], timeout=60)
        others = [reader.read_until_the_last.remote() for reader in readers]
        threads = [threading.Thread(target=read_until_the_last) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(2, last + 1):
            table = np.full((1000, 4), version, np.float32)
            if version % 2:  # from a file; the others by the object store
                path = tmp_path / f"version{version}.npy"
                embag.save_table(path, table)
                table = path
            sharded.replace("a", table)
        for thread in threads:
            thread.join(timeout=30)
        assert errors == []
        # The ids of a bag are in different blocks: a mixture would be half a version, or none.
        for versions in (seen, *ray.get(others, timeout=30)):
            assert {1, last} <= versions <= set(range(1, last + 1))


@pytest.mark.usefixtures("cluster")
def test_errors_at_construction(files, tmp_path):
    missing = dict(files, a=str(tmp_path / "missing.npy"))
    with pytest.raises(ShardError, match=r"shard \d on node 127\.0\.0\.\d failed: FileNotFound"):
        ShardedCollection(missing, FEATURES, plan=cut_plan(files))
    elsewhere = plan(files, {"10.1.2.3": 10**6})
    with pytest.raises(ValueError, match=r"plan must have nodes of the cluster, .*'10\.1\.2\.3'"):
        ShardedCollection(files, FEATURES, plan=elsewhere)
    for options in ({"num_threads": 9}, {"num_threads": 5, "n_shards": 6}):
        with pytest.raises(ValueError, match="num_threads must be at most the CPUs for each shard"):
            ShardedCollection(files, FEATURES, **options)
    with pytest.raises(ShardError, match=r"must answer within 0\.05 seconds, got no answer"):
        ShardedCollection(files, FEATURES, load_timeout=0.05)


@pytest.mark.usefixtures("cluster")
def test_shards_end_with_the_collection(files):
    n_cpus = ray.cluster_resources()["CPU"]

    def wait_for(n):
        for _ in range(100):
            if ray.available_resources().get("CPU") == n:
                return True
            time.sleep(0.1)
        return False

    assert wait_for(n_cpus)
    sharded = ShardedCollection(files, FEATURES)
    sharded(VALUES)
    assert wait_for(n_cpus - 3)
    del sharded
    gc.collect()
    assert wait_for(n_cpus)
    sharded = ShardedCollection(files, FEATURES)

    @ray.remote(num_cpus=0)
    class Other:
        def __init__(self, copy):
            self.copy = copy

        def look_up(self):
            return self.copy(VALUES, timeout=5)

    other = Other.remote(sharded)
    np.testing.assert_array_equal(ray.get(other.look_up.remote())[:, 0], [2, 2])
    sharded.close()
    with pytest.raises(ShardError, match="failed: ActorDiedError"):
        ray.get(other.look_up.remote(), timeout=20)
    assert wait_for(n_cpus)


@pytest.mark.usefixtures("cluster")
def test_replaced_tables_leave_the_object_store():
    def wait_for(n_bytes):
        """Wait until the object stores hold less than this."""
        for _ in range(100):
            name = "object_store_memory"
            used = ray.cluster_resources()[name] - ray.available_resources()[name]
            if used < n_bytes:
                return True
            time.sleep(0.1)
        return False

    assert wait_for(1)
    tables = {"a": np.ones((100_000, 4), np.float32)}
    n_bytes = tables["a"].nbytes
    with ShardedCollection(tables, [Feature("x", "a")]) as sharded:
        for version in range(20):
            sharded.replace("a", np.full((100_000, 4), version, np.float32))
            assert (sharded({"x": [[1, 2]]}) == 2 * version).all()
        assert wait_for(1.5 * n_bytes)
    assert wait_for(1)


@pytest.mark.usefixtures("cluster")
def test_a_reused_worker_follows_the_cpus_of_its_task():
    def count():
        return os.getpid(), embag.get_num_threads(), os.environ.get("OMP_NUM_THREADS")

    task = ray.remote(count)
    seen = {}
    for _ in range(10):
        for n_cpus in (1, 2):
            process, found, variable = ray.get(task.options(num_cpus=n_cpus).remote())
            assert variable == str(n_cpus)
            assert found == min(n_cpus, len(os.sched_getaffinity(0)))
            seen.setdefault(process, set()).add(n_cpus)
        if {1, 2} in seen.values():
            return
    pytest.fail(f"no worker had tasks of both kinds: {seen}")


@pytest.mark.usefixtures("cluster")
def test_pools_of_ray_data(files):
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("nanoarrow")
    lists = [[i % 1000, (7 * i) % 1000] for i in range(400)]
    batch = pa.table({"i": range(400), "x": lists})
    with ShardedCollection({"a": files["a"]}, [Feature("x", "a", "mean")]) as sharded:
        for table, column, name in ((files["a"], "x", "vector"), (sharded, None, "x_vector")):
            pooled = ray.data.from_arrow(batch).map_batches(
                Pool,
                fn_constructor_args=[table, column],
                batch_format="pyarrow",
                batch_size=100,
                compute=ray.data.ActorPoolStrategy(size=1),
                num_cpus=2,
            )
            rows = sorted(pooled.take_all(), key=lambda row: row["i"])
            np.testing.assert_array_equal([row[name] for row in rows], np.ones((400, 4)))
        in_tasks = ray.data.from_arrow(batch).map_batches(
            Pool(files["a"], "x"), batch_format="pyarrow"
        )
        assert [row["vector"][0] for row in in_tasks.take(3)] == [1, 1, 1]


@pytest.mark.usefixtures("cluster")
def test_pools_of_arrays_that_ray_data_made(files):
    pytest.importorskip("pyarrow")
    pytest.importorskip("nanoarrow")

    def make_arrays(batch):  # of different shapes
        made = np.empty(len(batch["id"]), object)
        made[:] = [np.arange(2 * n).reshape(n, 2) for n in batch["id"]]
        return {"n": batch["id"], "x": made}

    pool = Pool(files["a"], "x", mode="sum")
    pooled = ray.data.range(6).map_batches(make_arrays).map_batches(pool, batch_format="pyarrow")
    assert {row["n"]: row["vector"][0] for row in pooled.take_all()} == {n: 2 * n for n in range(6)}


@pytest.mark.usefixtures("cluster")
@pytest.mark.skipif(not SCALING.exists(), reason="docs/ is in the repository only")
def test_programs_of_the_page(tmp_path, monkeypatch):
    """The programs of docs/scaling.md run, with files in another folder."""
    monkeypatch.setattr(ray, "init", lambda address: None)  # the process is connected
    blocks = re.findall(r"^```python\n(.*?)^```", SCALING.read_text(), re.M | re.S)
    first, second = [block for block in blocks if ">>>" not in block]
    for name in ("items.safetensors", "users.npy"):
        embag.save_table(tmp_path / name, np.ones((10, 4), np.float32))
    (tmp_path / "save").mkdir()
    names = {}
    exec(first.replace("/data/", f"{tmp_path}/"), names)
    assert names["vectors"].shape == (2, 12)
    names["ids"] = {"clicked": [[3, 1]], "bought": [[2]], "user": [[5]]}
    names["grad_output"] = np.ones((1, 12), np.float32)
    exec(second.replace("/shared/save", str(tmp_path / "save")), names)
    with names["ebc"] as ebc:
        assert (ebc(names["ids"]) < 1).all()

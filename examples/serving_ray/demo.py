"""Sharded tables on three nodes of Ray, all on this machine, in a minute.

    python demo.py             # or make demo-ray

It makes a model, shows which node holds what, and serves it; then replaces a table, kills an actor
and a whole node while requests come in, and counts what fails. Every answer is compared with the
score of one machine. At last it trains some steps, saves them and restores them.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster

import embag
import embag.ray

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
import load
import make_tables
import service

ADDRESSES = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
# A lost node is noticed after a second, not after half a minute.
CONFIG = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}
NODE = {"num_cpus": 8, "object_store_memory": 100 << 20}


class Local:
    """The same model on one machine."""

    def __init__(self, folder):
        tables = {path.stem: embag.load_table(path) for path in folder.glob("*.safetensors")}
        features = [embag.Feature(name, name) for name in sorted(tables)]
        self.ebc = embag.EmbeddingBagCollection(tables, features, invalid="skip")
        with np.load(folder / "dense.npz") as arrays:
            self.weights = list(arrays.values())

    def scores(self, users):
        pooled = self.ebc({name: [user[name] for user in users] for name in self.ebc.slices})
        *hidden, last = self.weights
        for weight in hidden:
            pooled = np.maximum(pooled @ weight, 0)
        return (pooled @ last).ravel()


async def send(port, users, connections=8):
    """Return the load's figures, its scores among them."""
    bodies = [json.dumps(user).encode() for user in users]
    return await load.load(port, bodies, connections, may_fail=True)


def report(title, result, *expected):
    """Print the figures; raise unless each answer has the score of one of the models expected."""
    scores = np.array(result.scores)
    is_right = np.isclose(scores, expected, rtol=1e-4, atol=1e-5).any(axis=0)
    if wrong := np.flatnonzero(~is_right & ~np.isnan(scores)).tolist():
        raise RuntimeError(f"{title}: wrong scores of the users {wrong}")
    print(
        f"{title}: {len(scores)} requests, {result.n_failed} failed, all scores right; "
        f"p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms, longest {result.max_ms:.0f} ms; "
        f"{result.per_second:.0f} requests per second; lookup {result.lookup_ms:.1f} ms"
    )


async def send_while(port, users, change):
    """Send requests while something changes in another thread."""
    sending = asyncio.create_task(send(port, users))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(change)
    return await sending


def kill_actor(ebc):
    handle = ebc._actors._handles[0]
    process = ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
    os.kill(process, signal.SIGKILL)


@contextlib.contextmanager
def running_nodes():
    """Start three nodes; yield a function that kills all processes of the third."""
    head = {"node_ip_address": ADDRESSES[0], "include_dashboard": False, "_system_config": CONFIG}
    cluster = Cluster(initialize_head=True, head_node_args=head | NODE)
    *_, last = [cluster.add_node(node_ip_address=one, **NODE) for one in ADDRESSES[1:]]
    ray.init(address=cluster.address, _node_ip_address=ADDRESSES[0], log_to_driver=False)
    try:
        yield lambda: cluster.remove_node(last, allow_graceful=False)
    finally:
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()


def train():
    """Train a table that is cut in two, on the nodes that are left; save it, and restore it."""
    tables = {"items": np.zeros((3000, 8), np.float32)}
    features = [embag.Feature("item", "items")]
    plan = embag.ray.plan(tables, dict.fromkeys(ADDRESSES[:2], 60_000))
    print(plan)
    ids = np.arange(3000).reshape(1000, 3)
    optimizers = {"items": partial(embag.optim.Adagrad, lr=0.1)}
    with (
        embag.ray.ShardedCollection(tables, features, plan=plan, memory="copy") as ebc,
        tempfile.TemporaryDirectory() as folder,
    ):
        for _ in range(3):
            ebc.update(np.ones((1000, 8)), {"item": ids}, optimizers=optimizers)
        ebc.save(folder)
        saved = ebc({"item": ids})
        ebc.update(np.ones((1000, 8)), {"item": ids}, optimizers=optimizers)
        ebc.restore(folder)
        np.testing.assert_array_equal(ebc({"item": ids}), saved)
    print("trained 3 steps of Adagrad, saved, trained on, and restored them")


def run(port, folder, users, kill_node):
    """Serve the model of a folder, and report what requests see."""
    with service.make_collection(folder) as ebc:
        print(ebc.plan)
        service.start(ebc, folder, port)
        local = Local(folder)
        expected = local.scores(users)
        asyncio.run(send(port, users[:200]))  # replicas and shards are ready then
        for connections in (1, 8):
            result = asyncio.run(send(port, users, connections))
            report(f"{connections} connections", result, expected)

        # At a path of its own: a shard that is restarted loads its tables again.
        path = folder / "new" / "feature_20.safetensors"
        path.parent.mkdir()
        embag.save_table(path, embag.quantize(np.zeros((100, make_tables.DIM), np.float32)))
        result = asyncio.run(send_while(port, users, lambda: ebc.replace("feature_20", path)))
        local.ebc.replace("feature_20", embag.load_table(path))
        before, expected = expected, local.scores(users)
        report("while a table was replaced", result, before, expected)

        result = asyncio.run(send_while(port, users, lambda: kill_actor(ebc)))
        report("while an actor was killed", result, expected)
        result = asyncio.run(send_while(port, users, kill_node))
        report("while a node was killed", result, expected)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of each of 26 tables")
    parser.add_argument("--requests", type=int, default=300, help="of each part")
    parser.add_argument("--port", type=int, default=8123)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_nodes() as kill_node:
        folder = Path(name)
        make_tables.make(folder, args.rows)
        run(args.port, folder, make_tables.make_requests(args.requests, args.rows), kill_node)
        train()


if __name__ == "__main__":
    main()

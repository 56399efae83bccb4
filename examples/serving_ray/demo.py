"""Sharded tables on three nodes of Ray, all on this machine, in a minute.

    python demo.py             # or make demo-ray

It makes a model, shows which node holds what, and serves it; then replaces a table, kills an actor
and a whole node while requests come in, and counts what fails. Every answer is compared with the
score of one machine. At last it trains some steps, saves them and restores them.
"""

import argparse
import asyncio
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
    return await load.load(port, [json.dumps(user).encode() for user in users], connections)


def report(title, result, expected):
    np.testing.assert_allclose(result.scores, expected, rtol=1e-4, atol=1e-5)
    print(
        f"{title}: {len(result.scores)} requests, all scores right; p50 {result.p50_ms:.1f} ms, "
        f"p99 {result.p99_ms:.1f} ms, {result.per_second:.0f} requests per second; "
        f"of a request, {result.lookup_ms:.1f} ms of lookup"
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


def kill(cluster, node):
    """Kill all processes of a node."""
    cluster.remove_node(node, allow_graceful=False)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000, help="of each of 26 tables")
    parser.add_argument("--requests", type=int, default=500, help="of each part")
    parser.add_argument("--port", type=int, default=8123)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tables.make(folder, args.rows)
        users = make_tables.make_requests(args.requests, args.rows)
        local = Local(folder)
        head = {"node_ip_address": ADDRESSES[0], "include_dashboard": False}
        cluster = Cluster(
            initialize_head=True, head_node_args={**head, "_system_config": CONFIG, **NODE}
        )
        others = [cluster.add_node(node_ip_address=one, **NODE) for one in ADDRESSES[1:]]
        ray.init(address=cluster.address, _node_ip_address=ADDRESSES[0], log_to_driver=False)
        try:
            with service.make_collection(folder) as ebc:
                run(args.port, ebc, folder, users, local, lambda: kill(cluster, others[1]))
            train()
        finally:
            serve.shutdown()
            ray.shutdown()
            cluster.shutdown()


def run(port, ebc, folder, users, local, kill_node):
    print(ebc.plan)
    service.start(ebc, folder, port)
    expected = local.scores(users)
    asyncio.run(send(port, users[:200]))  # replicas and shards are ready then
    for connections in (1, 8):
        result = asyncio.run(send(port, users, connections))
        report(f"{connections} connections", result, expected)
    table = embag.quantize(np.zeros((100, make_tables.DIM), np.float32))
    asyncio.run(send_while(port, users, lambda: ebc.replace("feature_20", table)))
    local.ebc.replace("feature_20", table)
    report("after a table was replaced", asyncio.run(send(port, users)), local.scores(users))
    expected = local.scores(users)
    result = asyncio.run(send_while(port, users, lambda: kill_actor(ebc)))
    report("while an actor was killed", result, expected)
    result = asyncio.run(send_while(port, users, kill_node))
    report("while a node was killed", result, expected)


if __name__ == "__main__":
    main()

"""Sharded tables under Ray, on one machine: `python -m benchmarks.sharded`, from the root.

26 tables of 64 columns, looked up by 26 features: by a local collection, and by a
`ShardedCollection` with three shards on three nodes of Ray, all on this machine. The tables are
whole, or all are cut by rows, whose bags are reduced in the shards or (exact) here. For each batch:

- the time of a call, beside the local collection's
- of it: splitting the ids and merging the results, the lookups in the shards one after the other,
  and what is left, which is Ray's: starting calls, sending and receiving
- the bytes of requests and of replies

Beside it, the time of an empty call of three actors, and splitting and merging with 16 shards.
Results are compared with those of the local collection first. Ways take turns in each round.

Both with Ray's defaults, and with a cluster that sends larger objects with the calls.

It needs Ray (`pip install 'embag-cpu[ray]'`), and 1.4 GB of disk and of memory. `--json FILE`
writes the figures.
"""

import argparse
import json
import os
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.cluster_utils import Cluster

import embag
import embag.ray
from benchmarks import machine
from embag.ray._actors import TimeLimit
from embag.ray._lookups import Layout, Lookup, collection_of_shapes
from embag.ray._messages import Version
from embag.ray._plan import Block, Plan
from embag.ray._shard import Shard

N_TABLES, DIM, N_NODES, N_MANY = 26, 64, 3, 16
IDS_PER_BAG = 7.5
BATCHES = (1, 32, 512)
WAYS = ("whole tables", "cut by rows", "cut by rows, exact")
N_SETS = 8  # of ids, in turn: their rows exceed the caches
# Of the cluster. By default, Ray sends objects of up to 100 kB with the call or its answer, and
# larger ones through the object stores of the nodes.
SETTINGS: dict[str, dict[str, int]] = {
    "default": {},
    "sent with calls": {
        "max_direct_call_object_size": 32 << 20,
        "task_rpc_inlined_bytes_limit": 64 << 20,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sharded", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run of some seconds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE")
    arguments = parser.parse_args()
    n_rows, n_rounds, n_calls = 200_000, arguments.rounds, 20
    if arguments.quick:
        n_rows, n_rounds, n_calls = 2000, 1, 3
    results = machine.facts()
    results["settings"] = {
        "rounds": n_rounds,
        "calls": n_calls,
        "rows": n_rows,
        "quick": arguments.quick,
    }
    embag.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tables = make_tables(Path(folder), n_rows)
        features = [embag.Feature(f"feature{i}", name) for i, name in enumerate(tables)]
        results["many shards"] = [
            time_parts(tables, features, is_cut, n_rounds * n_calls) for is_cut in (False, True)
        ]
        for name, config in SETTINGS.items():
            calls, empty = time_calls(tables, features, n_rounds, n_calls, config)
            results[name] = {"calls": calls, "empty call": empty}
    report(results)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def make_tables(folder: Path, n_rows: int) -> dict[str, str]:
    """Return the paths of the tables."""
    rng = np.random.default_rng(0)
    paths = {}
    for i in range(N_TABLES):
        paths[f"table{i}"] = str(folder / f"table{i}.npy")
        table = rng.standard_normal((n_rows, DIM), np.float32)
        embag.save_table(paths[f"table{i}"], table)
    return paths


def make_batches(n_rows: int, batch: int) -> list[tuple[Any, Any]]:
    """Return ids end to end, with offsets."""
    rng = np.random.default_rng(batch)
    n_bags = N_TABLES * batch
    n_ids = int(IDS_PER_BAG * n_bags)
    batches = []
    for _ in range(N_SETS):
        ids = rng.integers(0, n_rows, n_ids)
        cuts = np.sort(rng.integers(0, n_ids + 1, n_bags - 1))
        batches.append((ids, np.concatenate([[0], cuts, [n_ids]])))
    return batches


def plan_for(tables: dict[str, str], names: list[str], is_cut: bool) -> Plan:
    """Return a plan with a shard for each name; all tables are whole, or all are cut."""
    n_bytes = sum(os.path.getsize(path) for path in tables.values())
    plan = embag.ray.plan(tables, [(name, n_bytes) for name in names])
    if not is_cut:
        return plan
    blocks = {}
    for name, spec in plan.tables.items():
        size = -(-spec.n_rows // len(names))
        starts = range(0, spec.n_rows, size)
        blocks[name] = tuple(
            Block(start, min(start + size, spec.n_rows), (i,)) for i, start in enumerate(starts)
        )
    return Plan(plan.nodes, plan.tables, blocks, plan.traffic)


def median(times: list[float]) -> float:
    return statistics.median(times)


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - start, result


class Parts:
    """A sharded lookup in this process: its parts can be timed."""

    def __init__(self, tables: dict[str, str], features: Any, plan: Plan, exact: bool = False):
        version = Version(0, tables, plan, (0,) * len(plan.nodes))
        shapes = collection_of_shapes(plan.tables, features, "raise")
        self._layout = Layout(version, shapes, exact)
        self._shards = [
            Shard(shard, shapes.features, "raise", "map", 1) for shard in range(len(plan.nodes))
        ]
        for shard in self._shards:
            shard.load(version)
            shard.keep(0)

    def split(self, ids: Any, offsets: Any) -> Lookup:
        arguments = (ids, offsets, None, False)
        return Lookup(self._layout, arguments, None, False, None, lambda shards: shards[0])

    def look_up(self, lookup: Lookup) -> dict[int, Any]:
        return {
            shard: self._shards[shard].lookup(request) for shard, request in lookup.requests.items()
        }


def time_parts(tables: dict[str, str], features: Any, is_cut: bool, n_calls: int) -> dict[str, Any]:
    """Time splitting and merging beside a local lookup, with many shards."""
    names = [f"node{i}" for i in range(N_MANY)]
    parts = Parts(tables, features, plan_for(tables, names, is_cut))
    local = collection_of(tables, features)
    batches = make_batches(len(next(iter(local.tables.values()))), BATCHES[-1])
    times: dict[str, list[float]] = {"local": [], "split": [], "merge": [], "shards": []}
    for i in range(n_calls):
        ids, offsets = batches[i % N_SETS]
        seconds, expected = timed(local, ids, offsets)
        times["local"].append(seconds)
        seconds, lookup = timed(parts.split, ids, offsets)
        times["split"].append(seconds)
        seconds, replies = timed(parts.look_up, lookup)
        times["shards"].append(seconds)
        seconds, result = timed(lookup.merge, replies)
        times["merge"].append(seconds)
        check(result, expected)
    way = WAYS[is_cut]
    return {"way": way, "shards": N_MANY} | {part: median(t) for part, t in times.items()}


def collection_of(tables: dict[str, str], features: Any) -> embag.EmbeddingBagCollection:
    loaded = {name: embag.load_table(path) for name, path in tables.items()}
    return embag.EmbeddingBagCollection(loaded, features)


def check(result: Any, expected: Any) -> None:
    """Raise unless the results are equal, but for the order of additions."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=2e-4)


def time_calls(
    tables: dict[str, str], features: Any, n_rounds: int, n_calls: int, config: dict[str, int]
) -> tuple[list[dict[str, Any]], float]:
    """Time calls under Ray; return them, and the time of an empty call of three actors."""
    addresses = [f"127.0.0.{2 + i}" for i in range(N_NODES)]
    common = {"num_cpus": 8, "object_store_memory": 400 << 20}
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "node_ip_address": addresses[0],
            "include_dashboard": False,
            "_system_config": config,
            **common,
        },
    )
    for address in addresses[1:]:
        cluster.add_node(node_ip_address=address, **common)
    ray.init(address=cluster.address, _node_ip_address=addresses[0], log_to_driver=False)
    try:
        local = collection_of(tables, features)
        plans = [plan_for(tables, addresses, way != WAYS[0]) for way in WAYS]
        exact = [way == WAYS[2] for way in WAYS]
        sharded = [
            embag.ray.ShardedCollection(tables, features, plan=plan, exact=is_exact)
            for plan, is_exact in zip(plans, exact, strict=True)
        ]
        parts = [
            Parts(tables, features, plan, is_exact)
            for plan, is_exact in zip(plans, exact, strict=True)
        ]
        n_rows = len(next(iter(local.tables.values())))
        found = [
            time_batch(batch, make_batches(n_rows, batch), local, sharded, parts, n_rounds, n_calls)
            for batch in BATCHES
        ]
        empty = median([time_empty_call(sharded[0]) for _ in range(n_rounds * n_calls)])
        for collection in sharded:
            collection.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    return [one for batch in found for one in batch], empty


def time_empty_call(collection: Any) -> float:
    """Return the time of a call of every shard that does nothing."""
    arguments = dict.fromkeys(range(N_NODES), (-1,))
    seconds, _ = timed(collection._actors.ask, "drop", arguments, TimeLimit(30.0))
    return seconds


def time_batch(
    batch: int,
    batches: list[tuple[Any, Any]],
    local: Any,
    sharded: list[Any],
    parts: list[Parts],
    n_rounds: int,
    n_calls: int,
) -> list[dict[str, Any]]:
    """Time all ways for one size of a batch."""
    found = []
    for way, collection, part in zip(WAYS, sharded, parts, strict=True):
        for ids, offsets in batches:
            check(collection(ids, offsets), local(ids, offsets))
        lookup = part.split(*batches[0])
        sent = [size_of(request) for request in lookup.requests.values()]
        received = [size_of(reply) for reply in part.look_up(lookup).values()]
        found.append({"batch": batch, "way": way, "sent": sum(sent), "received": sum(received)})
    times: list[dict[str, list[float]]] = [
        {name: [] for name in ("local", "call", "split", "shards", "merge")} for _ in WAYS
    ]
    for _ in range(n_rounds):
        for collection, part, own in zip(sharded, parts, times, strict=True):
            for i in range(n_calls):
                ids, offsets = batches[i % N_SETS]
                own["local"].append(timed(local, ids, offsets)[0])
                own["call"].append(timed(collection, ids, offsets)[0])
                seconds, lookup = timed(part.split, ids, offsets)
                own["split"].append(seconds)
                seconds, replies = timed(part.look_up, lookup)
                own["shards"].append(seconds)
                own["merge"].append(timed(lookup.merge, replies)[0])
    for one, own in zip(found, times, strict=True):
        one |= {name: median(seconds) for name, seconds in own.items()}
        one["p99"] = float(np.quantile(own["call"], 0.99))
    return found


def size_of(message: Any) -> int:
    """Return the bytes of a message, pickled as Ray does."""
    buffers: list[pickle.PickleBuffer] = []
    pickled = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    return len(pickled) + sum(len(buffer.raw()) for buffer in buffers)


def report(results: dict[str, Any]) -> None:
    for setting in ("many shards", *SETTINGS):
        print(setting)
        found = results[setting]
        for one in found if isinstance(found, list) else [*found["calls"], found]:
            cells = (
                f"{name} {value * 1e3:.2f} ms" if isinstance(value, float) else f"{name} {value}"
                for name, value in one.items()
                if not isinstance(value, list)
            )
            print("  " + "; ".join(cells))


if __name__ == "__main__":
    main()

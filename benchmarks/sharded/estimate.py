"""What a cluster holds and answers, computed from the figures of one machine.

The model, whose assumptions docs/scaling.md names:

- a node has room for `NODE_BYTES` of tables; tables are whole, on as few nodes as hold them, a
  shard on each
- a request has 26 features of 7.5 ids with 64 columns, and its rows are on all nodes; a call sends
  a batch of requests
- a client process makes one call after the other. A call takes an empty call for each shard, the
  time for its bytes, splitting and merging, and the lookup in a shard
- a shard answers one call at a time: an empty call of an actor, and its part of the lookup
"""

import math
from typing import Any, NamedTuple

N_SHARDS = 3  # in the measured calls
NODE_BYTES = 460e9  # of 512 GB
WANTED = 1e6  # requests a second


class Case(NamedTuple):
    """Tables and a load."""

    name: str
    n_bytes: float
    batch: int


CASES = tuple(
    Case(f"{rows:g} billion rows, {encoding}", rows * 1e9 * row_bytes, batch)
    for rows, encoding, row_bytes in (
        (4, "float32", 256),
        (39, "8 bits", 72),
        (39, "float32", 256),
    )
    for batch in (1, 32, 512)
)


class Costs(NamedTuple):
    """Times in seconds, measured."""

    per_shard: float  # of an empty call, beside others
    per_byte: float  # of requests and replies together
    split_and_merge: dict[int, float]  # by batch
    lookup: dict[int, float]  # by batch, of all shards together
    bytes_of: dict[int, float]  # by batch: sent and received


class Estimate(NamedTuple):
    """What a cluster does."""

    n_nodes: int
    seconds: float  # of a call
    requests_per_client: float  # a second
    n_clients: int  # processes that make the wanted requests
    shards_per_node: int  # each with a copy of the node's rows, that answer them
    network_bytes: float  # a second


def costs_of(found: list[dict[str, Any]]) -> Costs:
    """Return the costs that explain the calls of whole tables."""
    calls = {one["batch"]: one for one in found if one["way"] == "whole tables"}
    smallest, largest = calls[min(calls)], calls[max(calls)]

    def rest(one: dict[str, Any]) -> float:
        return float(one["call"] - one["split"] - one["merge"] - one["shards"])

    def n_bytes(one: dict[str, Any]) -> int:
        return int(one["sent"] + one["received"])

    more = max(0.0, rest(largest) - rest(smallest))
    return Costs(
        per_shard=rest(smallest) / N_SHARDS,
        per_byte=more / (n_bytes(largest) - n_bytes(smallest)),
        split_and_merge={batch: one["split"] + one["merge"] for batch, one in calls.items()},
        lookup={batch: one["shards"] for batch, one in calls.items()},
        bytes_of={batch: n_bytes(one) for batch, one in calls.items()},
    )


def estimate(case: Case, costs: Costs) -> Estimate:
    n_nodes = max(1, math.ceil(case.n_bytes / NODE_BYTES))
    batch, n_bytes = case.batch, costs.bytes_of[case.batch]
    of_shard = costs.per_shard + costs.lookup[batch] / n_nodes
    seconds = (
        n_nodes * costs.per_shard
        + n_bytes * costs.per_byte
        + costs.split_and_merge[batch]
        + costs.lookup[batch] / n_nodes
    )
    per_client = batch / seconds
    calls_per_second = WANTED / batch
    return Estimate(
        n_nodes,
        seconds,
        per_client,
        math.ceil(WANTED / per_client),
        math.ceil(calls_per_second * of_shard),
        calls_per_second * n_bytes,
    )

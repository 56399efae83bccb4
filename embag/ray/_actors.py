"""Shards as actors of Ray: placed, called, and waited for.

An actor that dies is restarted by Ray, on its node or, if the node is gone, on another one.
Lookups that it had not answered are sent again (`max_task_retries`), updates are not.

Tested in tests/sharding/test_faults.py.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from typing import Any

from embag.ray._plan import Node
from embag.ray._shard import Shard

# In a concurrency group of their own, so that lookups do not wait for a file.
_LOADS = {"concurrency_group": "load"}
_OPTIONS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("load", "keep", "drop", "save", "forget"), _LOADS),
    "update": {"max_task_retries": 0},  # a step must not be made twice
}


class ShardError(RuntimeError):
    """A shard did not answer, or could not.

    Attributes
    ----------
    shards : tuple of int
        The numbers of the shards.
    """

    def __init__(self, message: str, shards: Sequence[int]) -> None:
        super().__init__(message)
        self.shards = tuple(shards)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardError, (str(self), self.shards)


def import_ray() -> Any:
    """Return the package ray; raise an error that says how to install it."""
    try:
        import ray  # noqa: PLC0415
    except ImportError as error:
        raise ImportError("embag.ray needs ray for that: pip install 'embag-cpu[ray]'") from error
    return ray


def connect() -> Any:
    """Return the package ray, connected to a cluster; it starts one if there is none."""
    ray = import_ray()
    if not ray.is_initialized():
        ray.init()
    return ray


def connection() -> str | None:
    """Return what identifies the connection of this process to a cluster, None without one."""
    ray = import_ray()
    if not ray.is_initialized():
        return None
    return str(ray.get_runtime_context().get_worker_id())


def store(value: Any) -> Any:
    """Put an object into Ray's object store; return the reference."""
    return connect().put(value)


def nodes() -> dict[str, int]:
    """Return the nodes of the cluster, and the bytes of memory that Ray gives to tasks on each.

    Returns
    -------
    dict of str to int
        By the address of the node; by its id, where two have the same address.

    Raises
    ------
    ImportError
        If Ray is not installed.
    """
    alive = [node for node in connect().nodes() if node["Alive"]]
    addresses = [node["NodeManagerAddress"] for node in alive]
    return {
        address if addresses.count(address) == 1 else node["NodeID"]: int(
            node["Resources"].get("memory", 0)
        )
        for node, address in zip(alive, addresses, strict=True)
    }


def node_ids(places: Sequence[Node]) -> list[str]:
    """Return the id of the node of each shard; raise for an unknown node."""
    alive = [node for node in connect().nodes() if node["Alive"]]
    known = {node["NodeManagerAddress"]: node["NodeID"] for node in alive}
    known |= {node["NodeID"]: node["NodeID"] for node in alive}
    for place in places:
        if place.name not in known:
            raise ValueError(
                f"plan must have nodes of the cluster, {', '.join(nodes())}, got {place.name!r}"
            )
    return [known[place.name] for place in places]


def check_cpus(ids: Sequence[str], n_cpus: int) -> None:
    """Raise unless each node has the CPUs of its shards: Ray would use other nodes, or wait."""
    for node in connect().nodes():
        n_shards, n_all = ids.count(node["NodeID"]), node["Resources"].get("CPU", 0)
        if n_shards * n_cpus > n_all:
            raise ValueError(
                f"num_threads must be at most the CPUs for each shard of a node, got {n_cpus} for "
                f"{n_shards} on {node['NodeManagerAddress']}, which has {n_all:g} CPUs"
            )


class TimeLimit:
    """The time that a call may take, from now on."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """The seconds that are left."""
        return max(0.0, self._end - time.monotonic())


class Actors:
    """The actors of all shards, and how many calls each has not answered."""

    def __init__(self, handles: list[Any], names: list[str]) -> None:
        self._handles = handles
        self._names = names  # of the nodes
        self._waiting = [0] * len(handles)
        self._counting = threading.Lock()
        self._connection = connection()

    def __reduce__(self) -> tuple[Any, ...]:
        return Actors, (self._handles, self._names)

    @classmethod
    def start(cls, arguments: list[tuple[Any, ...]], places: Sequence[Node], n_cpus: int) -> Actors:
        """Start an actor for each shard, on its node."""
        ray = import_ray()
        from ray.util.scheduling_strategies import (  # noqa: PLC0415
            NodeAffinitySchedulingStrategy,
        )

        ids = node_ids(places)
        check_cpus(ids, n_cpus)
        make = ray.remote(
            max_restarts=-1,
            max_task_retries=-1,
            concurrency_groups={"load": 1},
            # In order, an actor would wait for ever for calls that were cancelled on their way.
            allow_out_of_order_execution=True,
            num_cpus=n_cpus,
        )(Shard)
        handles = [
            make.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=True)
            ).remote(*given)
            for node_id, given in zip(ids, arguments, strict=True)
        ]
        return cls(handles, [place.name for place in places])

    def __len__(self) -> int:
        return len(self._handles)

    def check_connection(self) -> None:
        """Raise after a shutdown of Ray in this process, or it would start another cluster."""
        if self._connection != connection():
            raise RuntimeError(
                "Ray must stay connected to the cluster of the shards, got a shutdown"
            )

    def choose(self, shards: tuple[int, ...]) -> int:
        """Return the shard that has the fewest calls of this process to answer."""
        return min(shards, key=self._waiting.__getitem__)

    def ask(self, method: str, arguments: dict[int, tuple[Any, ...]], limit: TimeLimit) -> Any:
        """Call a method of some shards at once; return the answers by shard."""
        ray = import_ray()
        sent = self._send(method, arguments)
        answers: dict[int, Any] = {}
        self._count(sent, 1)
        try:
            for shard, reference in sent.items():
                try:
                    answers[shard] = ray.get(reference, timeout=limit.left)
                except ray.exceptions.GetTimeoutError:
                    self._raise_for_timeout(sent, limit)
                except Exception as error:
                    self._raise_for(shard, error)
        finally:
            self._forget(sent, answers)
        return answers

    async def ask_async(
        self, method: str, arguments: dict[int, tuple[Any, ...]], limit: TimeLimit
    ) -> Any:
        """Do what `ask` does, in an event loop."""
        sent = self._send(method, arguments)
        answers: dict[int, Any] = {}
        self._count(sent, 1)
        futures = {
            shard: asyncio.wrap_future(reference.future()) for shard, reference in sent.items()
        }
        try:
            if futures:
                await asyncio.wait(futures.values(), timeout=limit.left)
            for shard, future in futures.items():
                if not future.done():
                    self._raise_for_timeout(sent, limit)
                try:
                    answers[shard] = future.result()
                except Exception as error:
                    self._raise_for(shard, error)
        finally:
            for future in futures.values():
                future.cancel()
                if future.done() and not future.cancelled():
                    future.exception()  # or the loop logs that nobody has read it
            self._forget(sent, answers)
        return answers

    def tell(self, method: str, arguments: dict[int, tuple[Any, ...]]) -> None:
        """Call a method of some shards, and wait for no answer."""
        self._send(method, arguments)

    def _send(self, method: str, arguments: dict[int, tuple[Any, ...]]) -> dict[int, Any]:
        options = _OPTIONS.get(method, {})
        sent = {}
        for shard, given in arguments.items():
            bound = getattr(self._handles[shard], method)
            try:
                sent[shard] = bound.options(**options).remote(*given)
            except Exception as error:  # such as for a full object store
                self._cancel(sent)
                self._raise_for(shard, error)
        return sent

    def _count(self, shards: Any, n: int) -> None:
        with self._counting:
            for shard in shards:
                self._waiting[shard] += n

    def _forget(self, sent: dict[int, Any], answers: dict[int, Any]) -> None:
        """Count the answers, and drop calls that nobody waits for any more."""
        self._count(sent, -1)
        self._cancel({shard: sent[shard] for shard in sent.keys() - answers.keys()})

    def _cancel(self, sent: dict[int, Any]) -> None:
        """Cancel calls that wait in the queues of their actors."""
        ray = import_ray()
        for reference in sent.values():
            ray.cancel(reference, recursive=False)

    def _raise_for_timeout(self, sent: dict[int, Any], limit: TimeLimit) -> None:
        ray = import_ray()
        of = {reference: shard for shard, reference in sent.items()}
        _, pending = ray.wait(list(of), num_returns=len(of), timeout=0, fetch_local=False)
        late = sorted(of[reference] for reference in pending or of)
        raise ShardError(
            f"{self._describe(late)} must answer within {limit.seconds:g} seconds, got no answer",
            late,
        ) from None

    def _raise_for(self, shard: int, error: Exception) -> None:
        ray = import_ray()
        cause: Exception = error
        if isinstance(error, ray.exceptions.RayTaskError):
            cause = error.cause
        reason = str(cause).strip().split("\n", 1)[0]
        raise ShardError(
            f"{self._describe([shard])} failed: {type(cause).__name__}: {reason}", [shard]
        ) from cause

    def _describe(self, shards: list[int]) -> str:
        each = [f"{shard} on node {self._names[shard]}" for shard in shards]
        return ("shard " if len(shards) == 1 else "shards ") + ", ".join(each)

    def stop(self) -> None:
        """End all actors."""
        # A shutdown has ended them. Ray 2.49 ends the process that kills actors of an earlier
        # connection.
        if self._connection == connection():
            for handle in self._handles:
                import_ray().kill(handle, no_restart=True)

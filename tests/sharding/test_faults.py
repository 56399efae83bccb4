"""Actors and nodes that are killed while lookups and updates run."""

import asyncio
import os
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
from ray_nodes import ADDRESSES

from embag import Feature, optim
from embag.ray import ShardedCollection, ShardError, nodes, plan

ray = pytest.importorskip("ray")
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:.*RAY_ACCEL_ENV_VAR_OVERRIDE:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's own sockets and files
]

FEATURES = [Feature("x", "a"), Feature("y", "b", "mean")]
VALUES = {"x": [[1, 999], [2, 3]], "y": [[5], [6]]}
EXPECTED = [[2, 2, 2, 2, 2, 2, 2, 2]] * 2
TIMEOUT = 15.0


@pytest.fixture
def sharded(cluster, files):
    """A collection with a shard on each node; table "a" is cut."""
    found = plan(files, dict.fromkeys(ADDRESSES, 20_000), {"a": 100, "b": 1})
    tables = {**files}
    with ShardedCollection(tables, FEATURES, plan=found, timeout=TIMEOUT) as made:
        yield made


def process_of(sharded, shard):
    handle = sharded._actors._handles[shard]
    return ray.get(handle.__ray_call__.remote(lambda _: os.getpid()), timeout=20)


class Load:
    """Threads, and an event loop with some tasks, that look up without a pause."""

    def __init__(self, sharded, n_threads=2, n_tasks=4):
        self._sharded, self._done = sharded, threading.Event()
        self.n_right, self.errors, self.wrong, self.slowest = 0, [], [], 0.0
        self._threads = [threading.Thread(target=self._repeat) for _ in range(n_threads)]
        self._threads.append(threading.Thread(target=self._run_tasks, args=(n_tasks,)))

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _record(self, started, result=None, error=None):
        self.slowest = max(self.slowest, time.monotonic() - started)
        if error is not None:
            self.errors.append(error)
        elif result.tolist() == EXPECTED:
            self.n_right += 1
        else:
            self.wrong.append(result)

    def _repeat(self):
        while not self._done.is_set():
            started = time.monotonic()
            try:
                self._record(started, self._sharded(VALUES))
            except Exception as error:
                self._record(started, error=error)

    def _run_tasks(self, n_tasks):
        async def repeat():
            while not self._done.is_set():
                started = time.monotonic()
                try:
                    self._record(started, await self._sharded.lookup(VALUES))
                except Exception as error:
                    self._record(started, error=error)

        async def run():
            await asyncio.gather(*(repeat() for _ in range(n_tasks)))

        asyncio.run(run())

    def check(self):
        """Every call had the whole result in time, or an error that names the shard."""
        assert self.wrong == []
        assert self.n_right > 0
        for error in self.errors:
            assert isinstance(error, ShardError)
            assert "on node" in str(error)
        assert self.slowest < TIMEOUT + 2


def test_actors_that_are_killed_under_load(sharded):
    with Load(sharded) as load:
        for shard in (0, 1, 2, 0):
            time.sleep(0.3)
            os.kill(process_of(sharded, shard), signal.SIGKILL)
        time.sleep(0.3)
        ray.kill(sharded._actors._handles[1], no_restart=False)
        time.sleep(0.5)
    load.check()
    assert load.errors == []  # Ray has sent the lookups again
    assert sharded(VALUES).tolist() == EXPECTED


def test_a_node_that_is_killed_under_load(sharded, cluster):
    lost = ADDRESSES[2]
    with Load(sharded) as load:
        time.sleep(0.5)
        cluster.kill(lost)
        time.sleep(5)
    load.check()
    assert sharded(VALUES).tolist() == EXPECTED  # its shard is on another node
    cluster.add(lost)
    deadline = time.monotonic() + 20
    while lost not in nodes():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert sharded(VALUES).tolist() == EXPECTED


def test_a_file_that_is_gone_when_an_actor_restarts(sharded, files, tmp_path):
    os.rename(files["a"], tmp_path / "away.npy")
    (block, *_) = sharded.plan.blocks["a"]
    shard = block.shards[0]
    os.kill(process_of(sharded, shard), signal.SIGKILL)
    time.sleep(0.5)
    with pytest.raises(ShardError, match=rf"shard {shard} on node .*FileNotFoundError.*a\.npy"):
        sharded(VALUES)
    os.rename(tmp_path / "away.npy", files["a"])
    assert sharded(VALUES).tolist() == EXPECTED


@pytest.mark.usefixtures("cluster")
def test_updates_are_made_once_or_raise(files, tmp_path):
    found = plan(files, dict.fromkeys(ADDRESSES, 20_000), {"a": 100, "b": 1})
    rules = {"a": partial(optim.SGD, lr=1.0)}
    with ShardedCollection(files, FEATURES, plan=found, memory="copy", timeout=TIMEOUT) as sharded:
        shard = sharded.plan.blocks["a"][0].shards[0]

        def update():
            sharded.update(np.ones((1, 8)), {"x": [[1]], "y": [[1]]}, optimizers=rules)

        def value():
            return sharded({"x": [[1]], "y": [[1]]})[0, 0]

        update()
        sharded.save(tmp_path)
        saved = value()
        assert saved == 0
        for _ in range(2):
            update()
            assert value() == saved - 1
            # The next update waits for its turn in the actor when that is killed.
            handle = sharded._actors._handles[shard]
            killer = threading.Timer(0.3, os.kill, (process_of(sharded, shard), signal.SIGKILL))
            handle.__ray_call__.options(max_task_retries=0).remote(lambda _: time.sleep(1))
            killer.start()
            with pytest.raises(ShardError, match=f"shard {shard} on node .*restore the last save"):
                update()
            killer.join()
            assert value() == saved  # the shard has loaded the last save; neither update is in it
            update()
            assert value() == saved - 1
            sharded.restore(tmp_path)
            assert value() == saved


@pytest.mark.usefixtures("cluster")
def test_lost_updates_are_reported(files):
    rules = {"a": partial(optim.SGD, lr=1.0)}
    with ShardedCollection(files, FEATURES, memory="copy", timeout=TIMEOUT) as sharded:
        sharded.update(np.ones((1, 8)), {"x": [[1]], "y": [[1]]}, optimizers=rules)
        shard = sharded.plan.blocks["a"][0].shards[0]
        os.kill(process_of(sharded, shard), signal.SIGKILL)
        time.sleep(1)
        with pytest.raises(ShardError, match=f"updates were lost.*: 1 of shard {shard};"):
            sharded(VALUES)
        assert sharded(VALUES).tolist() == EXPECTED

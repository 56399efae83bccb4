"""Actors and nodes that are killed while lookups and updates run."""

import asyncio
import os
import signal
import threading
import time
from contextlib import contextmanager, suppress
from functools import partial
from unittest.mock import MagicMock

import numpy as np
import pytest
from ray_nodes import ADDRESSES

import embag
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
MANY = {name: np.repeat(ids[:1], 8000, axis=0) for name, ids in VALUES.items()}
TIMEOUT = 15.0


@pytest.fixture
def sharded(cluster, files):
    """A collection with a shard on each node; a lookup of VALUES asks all of them."""
    found = plan(files, dict.fromkeys(ADDRESSES, 11_000))
    with ShardedCollection(files, FEATURES, plan=found, timeout=TIMEOUT) as made:
        assert made(VALUES).tolist() == EXPECTED
        yield made


def ask(sharded, shard, function):
    """Call a function of the shard in its process."""
    handle = sharded._actors._handles[shard]
    return ray.get(handle.__ray_call__.remote(function), timeout=20)


def process_of(sharded, shard):
    return ask(sharded, shard, lambda _: os.getpid())


def node_of(sharded, shard):
    return ask(sharded, shard, lambda _: ray.util.get_node_ip_address())


def wait_until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def stopped(process):
    """Stop a process, which does not answer then, but is not dead either."""
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def raises_in_time(seconds, function, *arguments, match="", **options):
    """Check that a call raises a `ShardError` when its time is over."""
    started = time.monotonic()
    with pytest.raises(ShardError, match=match) as caught:
        function(*arguments, **options)
    assert time.monotonic() - started < seconds + 1
    return caught.value


def run_lookup(sharded, **options):
    return asyncio.run(sharded.lookup(VALUES, **options))


class Load:
    """Threads, and an event loop with some tasks, that look up without a pause."""

    def __init__(self, sharded, values=VALUES, n_threads=2, n_tasks=4):
        self._sharded, self._values, self._done = sharded, values, threading.Event()
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
        elif (result == 2).all():
            self.n_right += 1
        else:
            self.wrong.append(result)

    def _repeat(self):
        while not self._done.is_set():
            started = time.monotonic()
            try:
                self._record(started, self._sharded(self._values))
            except Exception as error:
                self._record(started, error=error)
                time.sleep(0.01)

    def _run_tasks(self, n_tasks):
        async def repeat():
            while not self._done.is_set():
                started = time.monotonic()
                try:
                    self._record(started, await self._sharded.lookup(self._values))
                except Exception as error:
                    self._record(started, error=error)
                    await asyncio.sleep(0.01)

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


def bring_back(cluster, address):
    cluster.add(address)
    wait_until(lambda: address in nodes())


def test_a_node_that_is_killed_under_load(sharded, cluster):
    lost = ADDRESSES[2]
    assert node_of(sharded, 2) == lost
    with Load(sharded, MANY) as load:  # results are in the object stores of the nodes
        time.sleep(0.5)
        cluster.kill(lost)
        wait_until(lambda: node_of(sharded, 2) != lost)
    load.check()
    assert sharded(VALUES).tolist() == EXPECTED
    bring_back(cluster, lost)
    assert sharded(VALUES).tolist() == EXPECTED


def test_a_node_that_no_other_node_stands_in_for(cluster, files):
    found = plan(files, dict.fromkeys(ADDRESSES, 11_000))
    with ShardedCollection(files, FEATURES, plan=found, num_threads=7) as sharded:
        process = process_of(sharded, 2)
        cluster.kill(ADDRESSES[2])
        wait_until(lambda: not os.path.exists(f"/proc/{process}"))
        message = r"shard 2 on node 127\.0\.0\.4 must answer within 0\.5 seconds"
        assert raises_in_time(0.5, sharded, VALUES, timeout=0.5, match=message).shards == (2,)
        raises_in_time(0.5, run_lookup, sharded, timeout=0.5, match=message)
        bring_back(cluster, ADDRESSES[2])
        assert sharded(VALUES).tolist() == EXPECTED


def test_a_process_that_hangs(sharded, tmp_path):
    path = tmp_path / "new.npy"
    embag.save_table(path, np.full((1000, 4), 5, np.float32))
    with stopped(process_of(sharded, 1)):
        message = r"shard 1 on node .* must answer within"
        raises_in_time(0.3, sharded, VALUES, timeout=0.3, match=message)
        raises_in_time(0.3, run_lookup, sharded, timeout=0.3, match=message)
        sharded._load_timeout = 0.5
        raises_in_time(0.5, sharded.replace, "a", path, match=message)
    assert sharded(VALUES).tolist() == EXPECTED
    sharded._load_timeout = TIMEOUT
    embag.save_table(path, np.full((1000, 4), 7, np.float32))
    sharded.replace("a", path)
    assert sharded(VALUES).tolist() == [[14] * 4 + [2] * 4] * 2


def test_cancelled_lookups_do_not_block_those_after_them(sharded):
    async def run():
        for i in range(60):
            calls = [asyncio.create_task(sharded.lookup(VALUES)) for _ in range(3)]
            await asyncio.sleep(0.0005 * (i % 5))
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(sharded.lookup(VALUES), 0.0005 * (i % 7))
        return await sharded.lookup(VALUES, timeout=5)

    assert asyncio.run(run()).tolist() == EXPECTED
    for i in range(60):
        with suppress(ShardError):
            sharded(VALUES, timeout=0.0003 * (i % 7) + 1e-9)
    assert sharded(VALUES, timeout=5).tolist() == EXPECTED


def test_a_request_that_cannot_be_sent(sharded, monkeypatch):
    handle = MagicMock()
    handle.lookup.options.return_value.remote.side_effect = ray.exceptions.ObjectStoreFullError
    with monkeypatch.context() as patched:
        patched.setattr(sharded._actors, "_handles", [*sharded._actors._handles[:2], handle])
        for call in (sharded, lambda values: run_lookup(sharded)):
            with pytest.raises(ShardError, match=r"shard 2 on .* failed: ObjectStoreFullError"):
                call(VALUES)
    assert sharded._actors._waiting == [0] * 3
    assert sharded(VALUES).tolist() == EXPECTED


def test_close_under_load(sharded):
    with Load(sharded) as load:
        wait_until(lambda: load.n_right >= 10)
        sharded.close()
        wait_until(lambda: "the collection is closed" in map(str, load.errors))
    assert load.wrong == []
    assert {type(error) for error in load.errors} <= {ShardError, RuntimeError}


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


def test_a_mapped_file_that_becomes_shorter(sharded, files):
    os.truncate(files["a"], 200)  # reading its rows ends the process of a shard
    with pytest.raises(ShardError, match=r"a\.npy: file must have 16000 bytes of data"):
        sharded(VALUES)
    embag.save_table(files["a"], np.full((1000, 4), 1, np.float32))
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
def test_an_update_that_is_late(files, tmp_path):
    rules = {"a": partial(optim.SGD, lr=1.0)}
    values = {"x": [[1]], "y": [[1]]}
    with ShardedCollection(files, FEATURES, memory="copy", timeout=TIMEOUT) as sharded:
        shard = sharded.plan.blocks["a"][0].shards[0]

        def update(timeout=None):
            sharded.update(np.ones((1, 8)), values, optimizers=rules, timeout=timeout)

        update()
        sharded.save(tmp_path)
        update()
        with stopped(process_of(sharded, shard)):
            raises_in_time(0.3, update, 0.3, match=r"no answer; other shards may .* restore")
        assert sharded(values)[0, 0] in (-1, -2)  # it was made once, or not at all
        sharded.restore(tmp_path)
        assert sharded(values)[0, 0] == 0
        update()
        assert sharded(values)[0, 0] == -1


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


def test_lookups_after_a_shutdown_of_ray(sharded, cluster):
    calls = (
        lambda: sharded(VALUES),
        lambda: run_lookup(sharded),
        lambda: sharded.replace("a", np.ones((10, 4))),
    )
    ray.shutdown()
    try:
        for call in calls:
            with pytest.raises(RuntimeError, match="Ray must stay connected"):
                call()
        assert not ray.is_initialized()
    finally:
        cluster.connect()
    for call in calls:
        with pytest.raises(RuntimeError, match="Ray must stay connected"):
            call()
    sharded.close()

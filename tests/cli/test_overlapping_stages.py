"""Overlapping stages: the order of items, errors, and the number of waiting items."""

import threading
import time

import pytest

from embag.cli import _stages as stages


@pytest.mark.parametrize("n_threads", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 2, 50])
def test_everything_is_written_in_order(n, n_threads):
    written = []

    def pool(item):
        time.sleep(0.001 * (item % 3))
        return item * item

    seconds = stages.overlap(iter(range(n)), pool, written.append, n_threads)
    assert written == [item * item for item in range(n)]
    assert tuple(seconds) == stages.STAGES
    assert seconds["pooling"] >= 0.001 * sum(item % 3 for item in range(n))


@pytest.mark.parametrize("slow", ["pool", "write"])
def test_few_items_wait(slow):
    alive, most = 0, 0
    lock = threading.Lock()

    def change(by):
        nonlocal alive, most
        with lock:
            alive += by
            most = max(most, alive)

    def read():
        for item in range(100):
            change(1)
            yield item

    def pool(item):
        time.sleep(0.002 * (slow == "pool"))
        return item

    def write(item):
        time.sleep(0.002 * (slow == "write"))
        change(-1)

    stages.overlap(read(), pool, write, 3)
    # Two are read ahead and one is being read; four wait for a stage and one is being written.
    assert most <= 8


@pytest.mark.parametrize("stage", stages.STAGES)
def test_an_error_in_any_stage_ends_all_stages(stage):
    written = []

    def fail_at(name, item):
        if name == stage and item == 30:
            raise KeyError(name)
        return item

    def read():
        for item in range(10_000):
            yield fail_at("reading", item)

    def write(item):
        written.append(fail_at("writing", item))

    with pytest.raises(KeyError, match=stage):
        stages.overlap(read(), lambda item: fail_at("pooling", item), write, 2)
    assert written == list(range(len(written)))
    assert len(written) <= 40
    assert not [t for t in threading.enumerate() if t.name.startswith(stages.STAGES)]


def test_stages_overlap():
    """Each stage waits until all three work at the same time."""
    together = threading.Barrier(3)

    def read():
        for item in range(5):
            if item == 4:
                together.wait(10)
            yield item

    def pool(item):
        if item == 2:
            together.wait(10)
        return item

    def write(item):
        if item == 0:
            together.wait(10)

    stages.overlap(read(), pool, write, 2)

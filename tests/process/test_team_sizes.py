"""How many threads pay: `EMBAG_THREADS`, and what calls that take too long change."""

import numpy as np
import pytest
from processes import run_python

import embag
from embag._kernels.dispatch import kernels
from embag._process import team_sizes, threads

N = 1 << 20
MS = 1e6  # ns


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock of the test's own: `clock.now` is the time in seconds."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(team_sizes, "time", clock)
    monkeypatch.setattr(team_sizes, "is_fixed", False)
    team_sizes.forget()
    yield clock
    team_sizes.forget()


def ask(n_entries, count):
    """Return the threads of a call that begins."""
    count = team_sizes.limit(n_entries, count)
    team_sizes.begin(n_entries, count)
    return count


def test_calls_that_pay_keep_their_threads():
    for _ in range(10):
        assert ask(N, 8) == 8
        team_sizes.learn(N, 8, 1.2 * MS, 1 * MS)
    assert team_sizes.notes() == []


def test_one_bad_call_halves_the_threads():
    for expected in (8, 4, 2, 1, 1):
        count = ask(N, 8)
        assert count == expected
        if count > 1:
            team_sizes.learn(N, count, 24 * MS, 1 * MS)
    # Calls of another size are not concerned.
    assert ask(4 * N, 8) == 8
    (note,) = team_sizes.notes()
    assert note == (
        "calls of 1,048,576 to 2,097,151 entries use at most 1 of 2 threads: 0.0 s ago one took "
        "24.0 ms, and would have taken 1.0 ms on one thread"
    )


def test_more_threads_come_back_as_soon_as_they_pay(clock):
    for _ in range(3):
        team_sizes.learn(N, ask(N, 8), 24 * MS, 1 * MS)
    assert ask(N, 8) == 1
    clock.now += 1
    for _ in range(8 * 23 - 2):  # calls of a millisecond, to make up for the loss
        assert ask(N, 8) == 1
    for expected in (2, 4, 8, 8):
        assert ask(N, 8) == expected
        team_sizes.learn(N, expected, 0.4 * MS, 1 * MS)
    assert team_sizes.notes() == []


def test_trials_come_at_growing_intervals_and_cost_little(clock):
    """A busy machine: a call takes 24 ms with two threads, and 0.5 ms with one."""
    start, trials, spent, n_calls = clock.now, [], 0.0, 0
    while clock.now < start + 10:
        count = ask(N, 2)
        took = 0.024 if count == 2 else 0.0005
        clock.now += took
        n_calls += 1
        if count == 2:
            trials.append(clock.now - start)
            team_sizes.learn(N, 2, took * 1e9, 0.5 * MS)
        if clock.now > start + 9:
            spent += took
    assert len(trials) <= 55
    assert min(np.diff(trials)) > 0.15
    assert 10 / n_calls < 1.25 * 0.0005
    # Idle again.
    start = clock.now
    while ask(N, 2) == 1:
        clock.now += 0.0005
    assert clock.now - start < 1


def test_a_lone_failure_does_not_matter_for_long(clock):
    team_sizes.learn(N, 2, 2 * MS, 1 * MS)
    clock.now += 0.021
    n_skipped = 0
    while ask(N, 2) == 1:
        n_skipped += 1
    assert n_skipped <= 8
    team_sizes.learn(N, 2, 0.5 * MS, 1 * MS)
    clock.now += 5
    team_sizes.learn(N, 2, 2 * MS, 1 * MS)
    assert team_sizes._sizes[N.bit_length()].pause == team_sizes.FIRST_PAUSE


def test_fixed(monkeypatch):
    monkeypatch.setattr(team_sizes, "is_fixed", True)
    team_sizes.learn(N, 8, 24 * MS, 1 * MS)
    assert ask(N, 8) == 8


def test_a_kernel_tells_what_it_took(eager_threads):
    table = np.ones((1000, 64), np.float32)
    ids = np.zeros(100_000, np.int64)
    seen = []

    def learn(n_entries, count, took, alone):
        seen.append((n_entries, count, took, alone))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(team_sizes, "learn", learn)
        embag.embedding_bag(ids, table, np.arange(0, 100_000, 50), num_threads=1)
        assert seen == []
        for _ in range(100):  # nothing is known where the other thread does all the work
            embag.embedding_bag(ids, table, np.arange(0, 100_000, 50), num_threads=2)
            n_entries, count, took, alone = seen[-1]
            assert n_entries == (100_000 + 2000) * 64
            assert count == 2
            if took > 0:
                break
    assert took > 0
    assert alone > 0


def test_calls_use_fewer_threads(eager_threads):
    key = 102_000 * 64
    team_sizes.learn(key, 4, 24 * MS, 1 * MS)
    assert threads.threads_for(key, 4) == 2
    assert threads.team_for(key, 4) == threads.Team(2, key)
    team_sizes.learn(key, 2, 24 * MS, 1 * MS)
    assert threads.threads_for(key, 4) == 1


@pytest.mark.parametrize("way", ["arrays", "a ragged input", "a collection"])
def test_a_trial_reaches_the_kernel(way, clock, eager_threads, monkeypatch):
    """After a bad call and a pause, the next call has its threads again and is measured."""
    table = np.ones((1000, 64), np.float32)
    ids, offsets = np.zeros(64_000, np.int64), np.arange(0, 64_000, 32)
    collection = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("a", "t")])
    lists = list(ids.reshape(-1, 32))

    def call():
        if way == "arrays":
            embag.embedding_bag(ids, table, offsets, num_threads=2)
        elif way == "a ragged input":
            embag.embedding_bag(lists, table, num_threads=2)
        else:
            collection(ids, np.append(offsets, len(ids)), num_threads=2)

    seen = []
    learn = team_sizes.learn
    monkeypatch.setattr(team_sizes, "learn", lambda n, count, *_: seen.append((n, count)))
    call()
    ((n_entries, count),) = seen
    assert count == 2
    learn(n_entries, 2, 24 * MS, 12 * MS)
    call()
    assert len(seen) == 1  # it had one thread
    clock.now += 1
    for _ in range(10):
        call()
    assert (n_entries, 2) in seen[1:]


def test_kernels_on_one_thread_are_not_measured():
    kernels.take_region()
    table = np.ones((1000, 64), np.float32)
    embag.embedding_bag_backward(np.ones((10, 64), np.float32), np.zeros((10, 5), int), table)
    assert kernels.take_region() == (0.0, 0.0)


def test_the_environment_variable():
    code = "from embag._process import team_sizes; print(team_sizes.is_fixed)"
    for value, fixed in (("", False), ("adaptive", False), ("fixed", True)):
        assert run_python("-c", code, EMBAG_THREADS=value).stdout.strip() == str(fixed)
    failed = run_python("-c", code, check=False, EMBAG_THREADS="2")
    assert "RuntimeError: EMBAG_THREADS must be adaptive or fixed, got '2'" in failed.stderr

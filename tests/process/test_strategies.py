"""Prefetch strategies: how they are chosen, pinned and reported. They change no result."""

import os
import platform
import threading

import numpy as np
import pytest
from cases import QUANTIZED, low_precision_table
from processes import run_python

import embag
from embag._kernels import dispatch, strategies

CANDIDATES = dispatch.kernels.candidate_strategies()
# Those that nobody would choose reach the same rows.
ODD = ["L2:1:1", "L1:7", "L2:3:50", "L1:4096:4096", "L1:1000:3"]
if "load" in dispatch.kernels.WAYS:
    ODD += ["load:1:1", "load:9", "load:3:50", "load:4096:4096"]
ODD = list(map(strategies.parse, ODD))
NONE = strategies.parse("none")


@pytest.fixture
def kernels(level):
    kernels = dispatch.load_level(level)
    kernels.forget_strategies()
    yield kernels
    kernels.pin_strategy(strategies._pinned)
    kernels.forget_strategies()


def tables(dim):
    rng = np.random.default_rng(0)
    floats = rng.standard_normal((300, dim)).astype(np.float32)
    yield floats
    yield floats.astype(np.float64)
    yield floats.astype(np.float16)
    yield np.lib.stride_tricks.as_strided(
        rng.standard_normal(300 * (dim + 3)).astype(np.float32), (300, dim), (4 * (dim + 3), 4)
    )
    for name in QUANTIZED:
        yield low_precision_table(name, 300, dim)


def results(table, seed=1):
    """Lookups of each kind."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 60, 100)
    offsets = np.cumsum(lengths) - lengths
    n = int(lengths.sum())
    weights = rng.standard_normal(n).astype(
        np.float64 if getattr(table, "dtype", None) == np.float64 else np.float32
    )
    for dtype in (np.int32, np.int64):
        ids = rng.integers(0, 300, n).astype(dtype)
        for n_threads in (1, 3):
            options = {"num_threads": n_threads, "padding_idx": 7}
            yield embag.embedding_bag(ids, table, offsets, mode="sum", **options)
            yield embag.embedding_bag(
                ids, table, offsets, mode="sum", per_sample_weights=weights, **options
            )
            yield embag.embedding_bag(ids, table, offsets, mode="max", **options)
        yield from embag.embedding_bag(ids, table, offsets, mode="max", return_max_indices=True)
        yield embag.embedding_bag(
            np.where(np.arange(n) % 9, ids, 300 + ids), table, offsets, invalid="skip"
        )
        yield embag.embedding_bag(ids[:20].reshape(-1, 1), table)
    collection = (
        embag.EmbeddingBagCollection(
            {"a": table, "b": table},
            [embag.Feature("a", "a"), embag.Feature("b", "b", mode="sum")],
        )
        if not isinstance(table, np.ndarray) or table.dtype != np.float64
        else None
    )
    if collection is not None:
        yield collection({"a": (ids, offsets), "b": (ids[::-1].copy(), offsets)})
    if isinstance(table, np.ndarray) and table.dtype != np.float16:
        grads = rng.standard_normal((100, table.shape[1])).astype(table.dtype)
        for sparse in (False, True):
            found = embag.embedding_bag_backward(
                grads, ids, table, offsets, mode="sum", per_sample_weights=weights, sparse=sparse
            )
            yield found.weight.values if sparse else found.weight
            yield found.per_sample_weights


@pytest.mark.parametrize("dim", [1, 16, 100, 300])
def test_no_strategy_changes_a_bit(dim, kernels, eager_threads):
    for table in tables(dim):
        kernels.pin_strategy(NONE)
        expected = [result.tobytes() for result in results(table)]
        for strategy in CANDIDATES[1:] + ODD:
            kernels.pin_strategy(strategy)
            assert [result.tobytes() for result in results(table)] == expected, strategy


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_every_strategy_finds_bad_ids(dtype, kernels):
    table = np.ones((300, 16), np.float32)
    ids = np.random.default_rng(0).integers(0, 300, 400).astype(dtype)
    for strategy in [NONE, *CANDIDATES[1:], *ODD]:
        kernels.pin_strategy(strategy)
        for at in (0, 200, 399):
            bad = ids.copy()
            bad[at] = 300
            with pytest.raises(IndexError, match=rf"input\[{at}\] = 300 is out of range"):
                embag.embedding(bad, table)


@pytest.mark.parametrize("dim", [16, 300])
def test_no_strategy_reads_a_row_out_of_range(dim, kernels, eager_threads):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((300, dim)).astype(np.float32)
    ids = rng.integers(0, 300, 2000)
    ids[::3] = rng.choice([-1, 300, 2**40, -(2**40), 2**62, -(2**63)], len(ids[::3]))
    offsets = np.arange(0, 2000, 25)
    kernels.pin_strategy(NONE)
    lookups = {"max_indices": {"mode": "max", "return_max_indices": True}, "sum": {"mode": "sum"}}
    expected = {
        name: np.concatenate(
            embag.embedding_bag(ids, table, offsets, invalid="skip", **options), axis=None
        ).tobytes()
        for name, options in lookups.items()
    }
    for strategy in CANDIDATES[1:] + ODD:
        kernels.pin_strategy(strategy)
        for name, options in lookups.items():
            found = embag.embedding_bag(ids, table, offsets, invalid="skip", **options)
            assert np.concatenate(found, axis=None).tobytes() == expected[name], strategy
        with pytest.raises(IndexError, match=r"^input\[0\]"):
            embag.embedding_bag(ids, table, offsets, mode="sum")


# --- The choice, with a clock of the test's own --------------------------------


def noiseless(costs):
    return lambda candidate, _: costs[candidate]


def noisy(costs, seed):
    """Costs with noise: some percent always, and a preemption now and then."""
    rng = np.random.default_rng(seed)

    def cost(candidate, piece):
        noise = 1 + 0.05 * abs(rng.standard_normal())
        return costs[candidate] * noise * (30 if rng.random() < 0.03 else 1)

    return cost


def test_the_best_candidate_is_found(kernels):
    n = len(CANDIDATES)
    for best in range(n):
        costs = [1.0 + 0.2 * abs(candidate - best) for candidate in range(n)]
        used, chosen = kernels.simulate_choice(noiseless(costs), 100)
        assert chosen == best
        # From here on only comparisons take more than the best.
        assert set(used[60:]) >= {best}
        assert sum(candidate != best for candidate in used[60:]) <= 5


def test_settling_costs_at_most_thirty_pieces_of_the_worst_candidate(kernels):
    n = len(CANDIDATES)
    costs = [3.0 if candidate == 0 else 1.0 + candidate / 20 for candidate in range(n)]
    used, _ = kernels.simulate_choice(noiseless(costs), 200)
    assert sum(costs[candidate] - min(costs) for candidate in used) < 30 * (3.0 - min(costs))
    assert len(set(used)) == len(CANDIDATES)


def test_noise_does_not_mislead(kernels):
    n_good = 0
    for seed in range(200):
        costs = np.random.default_rng(seed).uniform(1, 2.5, len(CANDIDATES))
        used, _chosen = kernels.simulate_choice(noisy(costs, seed), 3000)
        taken = np.mean(costs[used[300:]]) / min(costs)
        n_good += taken <= 1.03
        assert taken <= 1.1
    assert n_good >= 190


def test_a_change_is_noticed(kernels):
    before = np.linspace(2, 1, len(CANDIDATES))
    after = before[::-1]
    rng = np.random.default_rng(0)

    def cost(candidate, piece):
        return (before if piece < 2000 else after)[candidate] * (1 + 0.05 * rng.random())

    used, chosen = kernels.simulate_choice(cost, 12_000)
    assert before[used[1900]] <= 1.2
    assert after[chosen] <= 1.2


@pytest.mark.parametrize("n_threads", [2, 4, 8])
def test_several_threads_credit_the_candidate_that_they_used(kernels, n_threads):
    taken = []
    for seed in range(30):
        costs = np.random.default_rng(seed).uniform(1, 2.5, len(CANDIDATES))
        rng = np.random.default_rng(seed)

        def cost(candidate, piece, costs=costs, rng=rng):
            return costs[candidate] * (1 + 0.05 * abs(rng.standard_normal()))

        used, _ = kernels.simulate_choice(cost, 6000, True, n_threads)
        taken.append(np.mean(costs[used[300:]]) / min(costs))
    assert np.mean(taken) <= 1.06  # 1.0503 on 64-bit Arm, which has more candidates


def test_comparisons_cost_little(kernels):
    used, chosen = kernels.simulate_choice(lambda candidate, _: 1.0 + (candidate != 4), 20_000)
    others = sum(candidate != chosen for candidate in used[1000:])
    assert 0 < others < 0.01 * len(used)


# --- The choice in lookups ------------------------------------------------------


def lookup(n_positions, table, **options):
    ids = np.random.default_rng(n_positions).integers(0, len(table), n_positions)
    return embag.embedding_bag(ids, table, np.arange(0, n_positions, 32), mode="sum", **options)


def test_small_calls_try_nothing(kernels):
    table = np.ones((5000, 64), np.float32)
    for n in (1, 64, 65, 4000):
        for _ in range(50):
            lookup(n, table)
    assert {choice["phase"] for choice in kernels.strategy_choices()} == {"default"}


def test_large_calls_settle(kernels):
    table = np.ones((5000, 64), np.float32)
    for _ in range(30):
        lookup(40_000, table, num_threads=1)
    (choice,) = kernels.strategy_choices()
    assert choice["phase"] == "settled"
    assert all(0 < ns < np.inf for ns in choice["least"])
    assert choice["operation"] == "sum"
    assert not choice["several"]


def test_a_pinned_strategy_is_used_alone(kernels):
    kernels.pin_strategy(strategies.parse("L1:8"))
    for _ in range(30):
        lookup(40_000, np.ones((5000, 64), np.float32))
    assert kernels.strategy_choices() == []


def test_more_classes_than_there_is_room_for(kernels, eager_threads):
    ids = np.zeros(5000, np.int64)
    for dim in (8, 24, 48, 96, 192, 384, 768, 1536):
        for rows in (100, 10_000):
            table = np.ones((rows, dim), np.float32)
            narrow = [embag.quantize(table, bits) for bits in (8, 4, 2)]
            for weight in (table, table.astype(np.float64), table.astype(np.float16), *narrow):
                for mode, weights in (("sum", None), ("max", None), ("sum", np.ones(5000))):
                    for n in (1, 2):
                        found = embag.embedding_bag(
                            *(ids, weight, [0]),
                            mode=mode,
                            per_sample_weights=weights,
                            num_threads=n,
                        )
                        assert (found == (5000 if mode == "sum" else 1)).all()
    assert len(kernels.strategy_choices()) == 256


def test_whatever_stands_in_the_state_results_are_right(kernels):
    table = np.random.default_rng(0).standard_normal((3000, 48)).astype(np.float32)
    ids = np.random.default_rng(1).integers(0, 3000, 20_000)
    offsets = np.arange(0, 20_000, 20)
    expected = embag.embedding_bag(ids, table, offsets, mode="sum").tobytes()
    stop = threading.Event()
    wrong = []

    def look_up():
        while not stop.is_set():
            for n_threads in (1, 2):
                found = embag.embedding_bag(ids, table, offsets, mode="sum", num_threads=n_threads)
                if found.tobytes() != expected:
                    wrong.append(found)

    callers = [threading.Thread(target=look_up) for _ in range(3)]
    for caller in callers:
        caller.start()
    rng = np.random.default_rng(2)
    for k in range(300):
        kernels.scribble_choices(rng.bytes(400))
        kernels.strategy_choices()
        if k % 20 == 0:
            kernels.forget_strategies()
        kernels.pin_strategy((ODD + CANDIDATES)[k % 15] if k % 3 else None)
    stop.set()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_children_of_a_fork_have_the_choice():
    code = (
        "import os, numpy as np, embag\n"
        "from embag._kernels.dispatch import kernels\n"
        "table = np.ones((5000, 64), np.float32)\n"
        "ids, offsets = np.arange(40_000) % 5000, np.arange(0, 40_000, 40)\n"
        "for _ in range(30): embag.embedding_bag(ids, table, offsets, num_threads=1)\n"
        "before = kernels.strategy_choices()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert kernels.strategy_choices() == before\n"
        "    assert (embag.embedding_bag(ids, table, offsets, num_threads=2) == 1).all()\n"
        "    os._exit(0)\n"
        "print(before[0]['phase'], os.waitpid(pid, 0)[1])\n"
    )
    assert run_python("-c", code).stdout.split() == ["settled", "0"]


# --- Names, the environment variable, and the report ---------------------------


@pytest.mark.parametrize("strategy", [*CANDIDATES, *ODD])
def test_names(strategy):
    name = strategies.name_of(strategy)
    assert (name == "none") == (strategy[1] == 0)
    assert strategies.parse(name) == (NONE if name == "none" else strategy)


def test_what_the_variable_may_be():
    assert strategies.parse(None) is strategies.parse("") is strategies.parse("auto") is None
    ways = dispatch.kernels.WAYS
    assert strategies.parse("none") == (ways["L1"], 0, 0)
    assert strategies.parse("L2:64:8") == (ways["L2"], 64, 8)
    assert strategies.parse("L1:16") == (ways["L1"], 16, 0)
    assert strategies.parse("L2:16") == (ways["L2"], 16, 1)
    assert ("load" in ways) == (platform.machine() in ("aarch64", "arm64", "ARM64"))
    if "load" in ways:
        assert strategies.parse("load:32:16") == (ways["load"], 32, 16)
    wrong = ["L3:1:1", "l1:16", "L1", "L1:0:4", "L1:5000", "L2:64:5000", "L1:-1", " none", "1"]
    for text in [*wrong, "load:0:16" if "load" in ways else "load:32:16"]:
        with pytest.raises(RuntimeError) as caught:
            strategies.parse(text)
        assert str(caught.value) == (
            "EMBAG_PREFETCH must be auto, pages, none, or a cache, rows ahead and rows at once "
            f"such as L2:64:8 (at most 4096 rows), got {text!r}"
        )


def test_the_variable_pins():
    code = (
        "import numpy as np, embag\n"
        "ids = np.arange(40_000) % 5000\n"
        "found = embag.embedding_bag(ids, np.ones((5000, 64), np.float32), [0])\n"
        "assert (found == 1).all()\n"
        "print(embag.show_config('dicts')['prefetching'])\n"
        "assert embag.tune(np.ones((500, 4))) == []\n"
        "embag.show_config()"
    )
    printed = run_python("-c", code, EMBAG_PREFETCH="L2:64:8").stdout
    assert "{'pinned': 'L2:64:8', 'choices': [], 'pages': []}" in printed
    assert "  prefetching L2:64:8, pinned by EMBAG_PREFETCH\n" in printed
    failed = run_python("-c", code, check=False, EMBAG_PREFETCH="L9")
    assert "RuntimeError: EMBAG_PREFETCH must be auto, pages, none, or" in failed.stderr


@pytest.mark.skipif(strategies.pinned() is not None, reason="EMBAG_PREFETCH is set")
def test_the_report(capsys):
    dispatch.kernels.forget_strategies()
    embag.show_config()
    assert "chosen while lookups run; none has been large enough so far" in capsys.readouterr().out
    for _ in range(30):
        lookup(40_000, np.ones((5000, 64), np.float32), num_threads=1)
    (choice,) = embag.show_config("dicts")["prefetching"]["choices"]
    assert choice["work"] == (
        "sum, float32 rows of up to 256 bytes, tables of 512 KiB to 16 MiB, one thread"
    )
    assert choice["state"] == "settled"
    assert choice["strategy"] in choice["ns per row"]
    embag.show_config()
    printed = capsys.readouterr().out
    assert f"  prefetching {choice['strategy']} (settled, " in printed
    assert choice["work"] in printed

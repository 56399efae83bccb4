"""Arrays that change during a call: an error or a stale result, never a wild access.

Each test runs in a process of its own, so that a crash is a failure.
"""

import subprocess
import sys
import textwrap

import pytest
from cases import LEVELS

PREAMBLE = """
import sys, threading, time
import numpy as np
import embag
from embag import _threads
_threads.ENTRIES_PER_THREAD = 1
_threads._N_MACHINE = 64
ERRORS = (IndexError, ValueError, RuntimeError)
"""


def run(code, level="baseline"):
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-X",
            "faulthandler",
            "-c",
            PREAMBLE + textwrap.dedent(code),
        ],
        env={"EMBAG_ISA": level, "PYTHONMALLOC": "malloc", "MALLOC_CHECK_": "3"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-3000:]
    return result.stdout


@pytest.mark.parametrize("level", LEVELS)
def test_values_written_by_another_thread(level):
    run(
        """
        rng = np.random.default_rng(0)
        EXTREMES = [2**62, -1, -(2**63), 2**31, 10**9]

        def batch(n_rows, dim):
            lengths = np.concatenate([rng.integers(0, 60, 100), [900]])
            input = rng.integers(0, n_rows, lengths.sum())
            return input, np.ones((n_rows, dim), np.float32), np.cumsum(lengths) - lengths

        outcomes = set()
        for n_rows, dim in ((5000, 64), (300, 700), (70_000, 70)):
            input, table, offsets = batch(n_rows, dim)
            good_input, good_offsets = input.copy(), offsets.copy()
            stop = threading.Event()

            def scribble():
                rng = np.random.default_rng(1)
                while not stop.is_set():
                    k, b = rng.integers(len(input)), rng.integers(len(offsets))
                    input[k], offsets[b] = rng.choice(EXTREMES), rng.choice(EXTREMES)
                    time.sleep(0)
                    input[k], offsets[b] = good_input[k], good_offsets[b]

            scribbler = threading.Thread(target=scribble)
            scribbler.start()
            deadline = time.monotonic() + 1
            weights = np.ones(len(input), np.float32)
            calls = [
                dict(mode="sum"), dict(mode="max"), dict(mode="mean", padding_idx=3),
                dict(mode="sum", per_sample_weights=weights), dict(mode="sum", max_norm=3.0),
                dict(mode="max", return_max_indices=True),
            ]
            while time.monotonic() < deadline:
                for options in calls:
                    for n_threads in (1, 3, 8):
                        try:
                            embag.embedding_bag(
                                input, table, offsets, num_threads=n_threads, **options
                            )
                            outcomes.add("result")
                        except ERRORS as error:
                            outcomes.add(type(error).__name__)
            stop.set()
            scribbler.join()
        assert outcomes - {"result"}, outcomes
        """,
        level,
    )


@pytest.mark.parametrize("level", LEVELS)
def test_offsets_that_break_every_estimate_of_the_plan(level):
    run(
        """
        table = np.zeros((100, 2048), np.float32)
        input = np.zeros(20_000, np.int64)
        rng = np.random.default_rng(0)
        for n_bags in (7, 63, 1023):
            even = np.linspace(0, len(input), n_bags).astype(np.int64)
            for k in range(60):
                offsets = even.copy()
                where = rng.random(n_bags) < rng.choice([0.05, 0.5, 0.95])
                if k == 0:
                    where[:] = False
                    where[::2] = True
                offsets[where] = rng.choice([2**62, -(2**62), 0, 19_999], where.sum())
                offsets[0], offsets[n_bags // 2] = 0, 2**62
                for n_threads in (3, 8, 64):
                    try:
                        embag.embedding_bag(
                            input, table, offsets, mode="sum", num_threads=n_threads
                        )
                        raise SystemExit("bad offsets were accepted")
                    except ValueError as error:
                        assert "offsets must" in str(error)
        """,
        level,
    )


LAYOUT_CHANGES = {
    "weight, to a wider dtype": "setattr(weight, 'dtype', np.float64)",
    "weight, to integers": "setattr(weight, 'dtype', np.int32)",
    "weight, its shape": "setattr(weight, 'shape', (20, 3200))",
    "input, to a narrower dtype": "setattr(input, 'dtype', np.int8)",
    "input, to a wider count": "setattr(input, 'dtype', np.int32)",
    "offsets, its shape": "setattr(offsets, 'shape', (1, 3))",
    "offsets, to int32": "setattr(offsets, 'dtype', np.int32)",
    "weights, to float16": "setattr(weights, 'dtype', np.float16)",
    "out, its shape": "setattr(out, 'shape', (64, 3))",
}


@pytest.mark.parametrize("name", LAYOUT_CHANGES)
def test_layouts_changed_by_the_conversion_of_another_argument(name):
    run(
        f"""
        class Index:
            def __index__(self):
                {LAYOUT_CHANGES[name]}
                return 1

        for case in range(20):
            weight = np.ones((1000, 64), np.float32)
            input, offsets = np.arange(1000), np.array([0, 2, 500])
            weights, out = np.ones(1000, np.float32), np.empty((3, 64), np.float32)
            options = dict(padding_idx=Index()) if case % 2 else dict(num_threads=Index())
            try:
                embag.embedding_bag(
                    input, weight, offsets, mode="sum", per_sample_weights=weights, out=out,
                    **options,
                )
                raise SystemExit("a changed array was accepted")
            except (TypeError, *ERRORS):
                pass
        """
    )


def test_subclasses_that_lie_about_themselves():
    run(
        """
        class LyingDtype(np.ndarray):
            dtype = property(lambda self: np.dtype(np.float32))

        class LyingShape(np.ndarray):
            shape = property(lambda self: (4, 10**6))

        class LyingLength(np.ndarray):
            def __len__(self):
                return 10**6

        ids = np.arange(1000).reshape(500, 2)
        for _ in range(20):
            for lie in (LyingDtype, LyingShape):
                for options in ({}, {"return_max_indices": True, "mode": "max"}):
                    try:
                        result = embag.embedding_bag(ids, np.ones((1000, 64)).view(lie), **options)
                        for array in result if options else [result]:
                            assert array.shape == (500, 64), array.shape
                    except (RuntimeError, MemoryError):
                        pass
            offsets = np.array([0, 3]).view(LyingLength)
            result = embag.embedding_bag(np.arange(9), np.ones((10, 3)), offsets, mode="sum")
            assert result.tolist() == [[3] * 3, [6] * 3]
        """
    )

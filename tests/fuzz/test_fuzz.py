"""The fuzzer runs for some seconds, and covers every public name and parameter."""

import argparse
import importlib
import inspect
import operator
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from processes import SCRIPTS, run_python

import embag
from embag._kernels import dispatch

pytest.importorskip("ml_dtypes")
pytest.importorskip("scipy")

from fuzz import calls

TESTS = Path(__file__).parents[1]
PUBLIC = set(embag.__all__) - {"__version__", "PerformanceWarning", "optim"}


def run(*command, **variables):
    return run_python(*command, cwd=TESTS, timeout=300, **variables).stdout


# Only Linux limits the memory of a process.
needs_limits = pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")


@needs_limits
def test_thousands_of_cases():
    # The chunks differ in level and threads.
    output = run("-m", "fuzz", "--cases", "6000", "--chunk", "1000", "--seed", "0")
    ends = {line.split()[0]: line for line in output.splitlines()}
    assert "6000 cases in" in output
    for name in ("embedding_bag", "embedding_bag_backward", "EmbeddingBagCollection.__call__"):
        for end in ("returned", "TypeError", "ValueError", "IndexError"):
            assert end in ends[name], ends[name]


@needs_limits
def test_a_failure_report_names_the_command_that_repeats_it(tmp_path):
    fuzz = importlib.import_module("fuzz.__main__")
    options = argparse.Namespace(seed="0", chunk=1000, failures=tmp_path)
    levels = [level for level in dispatch.built_levels() if level in dispatch.supported_levels()]
    for k, eager in ((500, False), (1500, True)):
        fuzz.report_failure(options, k, "text")
        command = (tmp_path / f"0-{k}.txt").read_text().splitlines()[0]
        variable, python, *arguments = command.split()
        assert variable == f"EMBAG_ISA={levels[k // 1000 % len(levels)]}"
        assert (python, *arguments[:2]) == ("python", "-m", "tests.fuzz")
        assert ("--eager" in arguments) == eager
        run("-m", "fuzz", *arguments[2:], EMBAG_ISA=variable.partition("=")[2])


@needs_limits
def test_cases_drawn_by_hypothesis():
    # Hypothesis shrinks failures.
    run(SCRIPTS / "fuzz_by_hypothesis.py")


@pytest.fixture(scope="module")
def drawn():
    """Return the arguments that the fuzzer passes to each function."""
    seen = {}
    rng = random.Random(0)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for _ in range(4000):
            case = calls.case(rng)
            seen.setdefault(case.name, set()).update(case.arguments)
    return seen


def test_every_public_name_has_cases(drawn):
    assert PUBLIC <= calls.COVERED
    methods = set()
    for name in PUBLIC:
        kind = getattr(embag, name)
        if isinstance(kind, type) and not issubclass(kind, tuple):
            methods |= {
                f"{name}.{method}"
                for method, value in vars(kind).items()
                if not method.startswith("_") and not isinstance(value, property)
                if callable(value) or isinstance(value, classmethod)
            }
    assert methods <= set(drawn), methods - set(drawn)


def test_every_parameter_is_passed(drawn):
    assert len(drawn) > 20
    for name, given in drawn.items():
        parameters = inspect.signature(operator.attrgetter(name)(embag)).parameters
        missing = set(parameters) - given - {"self", "arguments", "options"}
        assert not missing, f"fuzz/ never passes {missing} to {name}"


def test_any_integers_may_be_offsets_and_indices(level, eager_threads):
    rng = np.random.default_rng(0)
    table = rng.random((50, 33), dtype=np.float32)
    extremes = np.array([0, 1, -1, 49, 50, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
    outcomes = set()
    for _ in range(1500):
        n = rng.integers(0, 40)
        input = rng.integers(0, 50, n)
        offsets = np.sort(rng.integers(0, n + 1, rng.integers(0, 12)))
        if rng.random() < 0.7:
            offsets[:1] = 0
        if n and rng.random() < 0.3:
            input[rng.integers(n)] = rng.choice(extremes)
        if len(offsets) and rng.random() < 0.3:
            offsets[rng.integers(len(offsets))] = rng.choice(extremes)
        try:
            embag.embedding_bag(
                input,
                table,
                offsets,
                mode=["sum", "mean", "max"][rng.integers(3)],
                include_last_offset=bool(rng.integers(2)),
                num_threads=int(rng.integers(1, 9)),
            )
            outcomes.add("result")
        except (ValueError, IndexError) as error:
            outcomes.add(type(error).__name__)
    assert outcomes == {"result", "ValueError", "IndexError"}


def test_any_integers_may_be_offsets_and_values_of_a_collection(level, eager_threads):
    rng = np.random.default_rng(0)
    tables = {"a": rng.random((50, 33), np.float32), "b": rng.random((20, 300))}
    tables["c"] = embag.quantize(np.ones((9, 2)))
    modes = ["sum", "mean", "max"]
    extremes = [0, 1, -1, 8, 9, 50, 2**31 - 1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)]
    outcomes = set()
    for seed in range(700):
        ebc = embag.EmbeddingBagCollection(
            tables,
            [embag.Feature(f"{i}", "abc"[rng.integers(3)], modes[i % 3]) for i in range(seed % 7)],
        )
        n_bags = rng.integers(0, 5)
        offsets = np.cumsum(rng.integers(0, 6, n_bags * len(ebc.features) + 1))
        offsets -= offsets[0]
        values = rng.integers(0, 9, offsets[-1] + rng.integers(0, 2))
        for array in (values, offsets):
            if len(array) and rng.random() < 0.4:
                array[rng.integers(len(array))] = rng.choice(extremes)
        in_order = offsets[0] == 0 and (offsets[1:] >= offsets[:-1]).all()
        sound = in_order and offsets[-1] <= len(values)
        results = []
        for given in (values, values.tolist()):
            for n_threads in (1, 3):
                out = np.full((n_bags if ebc.features else 0, ebc.dim), 7, np.float32)
                try:
                    results.append(ebc(given, offsets, out=out, num_threads=n_threads).tolist())
                    assert sound
                except (ValueError, IndexError) as error:
                    assert isinstance(error, IndexError) == sound, error
                    assert (out == 7).all()
                    results.append(str(error))
        assert results[1:] == results[:-1]
        outcomes.add(type(results[0]))
    assert outcomes == {str, list}

"""The benchmarks run, small: each asserts its results first. No figure is looked at."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HAS_TORCH = importlib.util.find_spec("torch") is not None

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "run.py").exists(), reason="benchmarks are in the repository only"
)


def run_module(*arguments):
    subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def results_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "quick.json"
    contenders = ["embag", "embag-numpy", "limit", "numpy", *(["torch"] if HAS_TORCH else [])]
    run_module("benchmarks.run", "--quick", "--json", path, "--contenders", *contenders)
    return path


def test_results_are_whole(results_file):
    results = json.loads(results_file.read_text())
    assert results["settings"] == {"quick": True, "threads": 1, "rounds": 2}
    assert results["machine"]["cores"] >= 1
    assert results["versions"]["embag"]
    assert results["versions"]["level"]
    names = {workload["name"] for workload in results["workloads"]}
    assert {"one-bag", "ragged-d64-2m", "max-d64-1m"} <= names
    has_limit = "limit" not in results["missing"]
    for workload in results["workloads"]:
        contenders = workload["contenders"]
        assert {"embag", "embag-numpy"} <= set(contenders)
        assert ("torch" in contenders) == HAS_TORCH
        assert ("limit" in contenders) == has_limit
        for figures in contenders.values():
            assert len(figures["seconds"]) == 2
            for key in ("ns per row", "us per call", "GB/s"):
                assert math.isfinite(figures[key])
                assert figures[key] > 0
            assert (figures["times torch"] is not None) == HAS_TORCH
            assert (figures["share of limit"] is not None) == has_limit


def test_table_is_written_and_checked(results_file, tmp_path):
    readme = tmp_path / "README.md"
    empty = "before\n<!-- benchmark table: start -->\n<!-- benchmark table: end -->\nafter\n"
    readme.write_text(empty)
    with pytest.raises(subprocess.CalledProcessError):
        run_module("benchmarks.table", results_file, readme, "--check")
    assert readme.read_text() == empty
    run_module("benchmarks.table", results_file, readme)
    run_module("benchmarks.table", results_file, readme, "--check")
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "| max, D = 64, 1 M rows |" in text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_figures_are_whole(tmp_path):
    path = tmp_path / "process.json"
    run_module("benchmarks.process", "--quick", "--json", path)
    results = json.loads(path.read_text())
    figures = [results["threads"], results["import"], *results["memory"].values()]
    assert all(math.isfinite(entry["result"]) and entry["target"] for entry in figures)

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


def has_uncoalesced(workload):
    return HAS_TORCH and workload["gradient"] == "sparse" and workload["name"] != "step-d64-1m"


def run_module(*arguments):
    subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=ROOT, check=True)


@pytest.fixture(scope="module")
def results_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "quick.json"
    contenders = ["embag", "embag-numpy", "limit", "numpy"]
    contenders += ["torch", "torch-uncoalesced"] if HAS_TORCH else []
    run_module("benchmarks.run", "--quick", "--json", path, "--contenders", *contenders)
    return path


def test_results_are_whole(results_file):
    results = json.loads(results_file.read_text())
    assert results["settings"] == {"quick": True, "threads": 1, "rounds": 2}
    assert results["machine"]["cores"] >= 1
    assert results["versions"]["embag"]
    assert results["versions"]["level"]
    workloads = {workload["name"]: workload for workload in results["workloads"]}
    assert {"one-bag", "ragged-d64-2m", "max-d64-1m"} <= set(workloads)
    assert {"dense-max-d64-10k", "sparse-weighted-d64-1m", "step-d64-1m"} <= set(workloads)
    has_limit = "limit" not in results["missing"]
    torch = {"torch"} if HAS_TORCH else set()
    for workload in workloads.values():
        contenders = workload["contenders"]
        if workload["gradient"] is None:
            expected = {"embag", "embag-numpy", *torch, *(["limit"] if has_limit else [])}
            assert set(contenders) - {"numpy"} == expected
        else:
            uncoalesced = {"torch-uncoalesced"} if has_uncoalesced(workload) else set()
            assert set(contenders) == {"embag", *torch, *uncoalesced}
        for figures in contenders.values():
            assert len(figures["seconds"]) == 2
            for key in ("ns per row", "us per call", "GB/s"):
                assert math.isfinite(figures[key])
                assert figures[key] > 0
            for baseline in ("torch", "torch-uncoalesced"):
                assert (figures[f"times {baseline}"] is not None) == (baseline in contenders)
            assert (figures["share of limit"] is not None) == ("limit" in contenders)
            assert set(figures["targets met"]) == set(figures["targets"]) & set(contenders)


def test_tables_are_written_and_checked(results_file, tmp_path):
    readme = tmp_path / "README.md"
    markers = [
        f"<!-- {name} table: start -->\n<!-- {name} table: end -->\n"
        for name in ("benchmark", "gradient")
    ]
    empty = "before\n" + "between\n".join(markers) + "after\n"
    readme.write_text(empty)
    with pytest.raises(subprocess.CalledProcessError):
        run_module("benchmarks.table", results_file, readme, "--check")
    assert readme.read_text() == empty
    run_module("benchmarks.table", results_file, readme)
    run_module("benchmarks.table", results_file, readme, "--check")
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    forward, gradients = text.split("\nbetween\n")
    assert "| max, D = 64, 1 M rows |" in forward
    assert "| dense gradient, max, 10 k rows |" in gradients


def test_a_table_that_the_results_do_not_have_is_left_alone(results_file, tmp_path):
    results = json.loads(results_file.read_text())
    results["workloads"] = [w for w in results["workloads"] if w["gradient"] is not None]
    gradients = tmp_path / "gradients.json"
    gradients.write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    markers = "<!-- gradient table: start -->\n<!-- gradient table: end -->\n"
    readme.write_text(markers)  # and no markers of the other
    run_module("benchmarks.table", gradients, readme)
    assert "| dense gradient, max, 10 k rows |" in readme.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_figures_are_whole(tmp_path):
    path = tmp_path / "process.json"
    run_module("benchmarks.process", "--quick", "--json", path)
    results = json.loads(path.read_text())
    assert len(results["threads"]) == 3
    assert len(results["gradients"]) == 8
    groups = [results[name].values() for name in ("threads", "memory", "gradients")]
    figures = [results["import"], *(entry for group in groups for entry in group)]
    assert all(math.isfinite(entry["result"]) for entry in figures)

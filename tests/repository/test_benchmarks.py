"""Small runs of the benchmarks, which check their results first. No figure is tested."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from processes import run_python

ROOT = Path(__file__).resolve().parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_SCIPY = importlib.util.find_spec("scipy") is not None
HAS_FBGEMM = HAS_TORCH and importlib.util.find_spec("fbgemm_gpu") is not None
EMBAG = {"embag"}
EXPECTED = {  # per kind of workload, besides the peers
    "forward": EMBAG | {"embag-numpy", "limit"},
    "backward": EMBAG,
    "step": EMBAG,
    "quantized": EMBAG | {"limit"},
    "collection": EMBAG | {"limit"},
    "quantize": EMBAG,
    "matrix": EMBAG | {"embag-numpy", "limit"} if HAS_SCIPY else {"limit"},
}

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "run.py").exists(), reason="benchmarks are in the repository only"
)


def expected_contenders(workload, missing):
    expected = EXPECTED[workload["kind"]] - set(missing)
    is_collection = workload["kind"] == "collection"
    is_int8 = workload["dtype"] == "int8"
    if HAS_TORCH and workload["kind"] != "matrix" and not (is_collection and is_int8):
        expected.add("torch")
    if HAS_SCIPY and workload["kind"] == "matrix":
        expected.add("scipy")
    if HAS_TORCH and workload["kind"] == "backward" and workload["gradient"] == "sparse":
        expected.add("torch-uncoalesced")
    if HAS_FBGEMM and is_collection:
        expected.add("fbgemm")
    return expected


def run_module(*arguments, **options):
    return run_python("-m", *arguments, cwd=ROOT, timeout=300, **options)


@pytest.fixture(scope="module")
def results_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "quick.json"
    contenders = ["embag", "embag-numpy", "limit", "numpy"]
    contenders += ["torch", "torch-uncoalesced"] if HAS_TORCH else []
    contenders += ["fbgemm"] if HAS_FBGEMM else []
    contenders += ["scipy"] if HAS_SCIPY else []
    run_module("benchmarks.run", "--quick", "--json", path, "--contenders", *contenders)
    return path


def test_results_are_complete(results_file):
    results = json.loads(results_file.read_text())
    assert results["settings"] == {"quick": True, "threads": 1, "rounds": 2}
    assert results["machine"]["cores"] >= 1
    assert results["versions"]["embag"]
    assert results["versions"]["level"]
    workloads = {workload["name"]: workload for workload in results["workloads"]}
    assert {"one-bag", "ragged-d64-2m", "max-d64-1m"} <= set(workloads)
    assert {"dense-max-d64-10k", "sparse-weighted-d64-1m", "step-d64-1m"} <= set(workloads)
    assert {"int8-d64-2m", "26-tables-batch-int8", "quantize-int8-1m"} <= set(workloads)
    for workload in workloads.values():
        contenders = workload["contenders"]
        expected = expected_contenders(workload, results["missing"])
        others = {"numpy"} if workload["kind"] == "matrix" else {"numpy", "scipy"}
        assert set(contenders) - others == expected
        for figures in contenders.values():
            assert len(figures["seconds"]) == 2
            for key in ("ns per row", "us per call", "GB/s"):
                assert math.isfinite(figures[key])
                assert figures[key] > 0
            for baseline in ("torch", "torch-uncoalesced", "fbgemm", "scipy"):
                assert (figures[f"times {baseline}"] is not None) == (baseline in contenders)
            assert (figures["share of limit"] is not None) == ("limit" in contenders)
            assert set(figures["targets met"]) == set(figures["targets"]) & set(contenders)


def test_tables_are_written_and_checked(results_file, tmp_path):
    readme = tmp_path / "README.md"
    markers = [
        f"<!-- {name} table: start -->\n<!-- {name} table: end -->\n"
        for name in ("benchmark", "gradient", "inference", "matrix")
    ]
    empty = "before\n" + "between\n".join(markers) + "after\n"
    readme.write_text(empty)
    assert run_module(
        "benchmarks.operations.table", results_file, readme, "--check", check=False
    ).returncode
    assert readme.read_text() == empty
    run_module("benchmarks.operations.table", results_file, readme)
    run_module("benchmarks.operations.table", results_file, readme, "--check")
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    forward, gradients, inference, matrices = text.split("\nbetween\n")
    assert "| max, D = 64, 1 M rows |" in forward
    assert "| dense gradient, max, 10 k rows |" in gradients
    assert "| 8-bit sum, D = 64, 2 M rows | 72 |" in inference
    assert "| `X @ W`, D = 64, 10 k rows, 512 rows of X with 40 entries |" in matrices


def test_processors_are_compared_side_by_side(results_file, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- gradient table: start -->\n<!-- gradient table: end -->\n")
    results = json.loads(results_file.read_text())
    results["workloads"] = [w for w in results["workloads"] if w["kind"] == "backward"]
    for name in ("one", "other"):
        (tmp_path / f"{name}.json").write_text(json.dumps(results))
    named = [f"{name}={tmp_path / name}.json" for name in ("one", "other")]
    run_module("benchmarks.operations.table", *named, page)
    run_module("benchmarks.operations.table", *named, page, "--check")
    model = results["machine"]["processor"]
    heading = f"| backward pass: times as fast as torch | {model} (one) | {model} (other) |"
    text = page.read_text()
    assert heading in text
    assert text.count("| dense gradient, max, 10 k rows |") == 3
    assert text.count(f"**{model} (other)**") == 1


def test_the_picture_is_drawn_and_checked(results_file, tmp_path):
    picture = tmp_path / "speed.svg"
    picture.write_text("")
    named = [f"{name}={results_file}" for name in ("one", "other")]
    assert run_module("benchmarks.picture", *named, picture, "--check", check=False).returncode
    run_module("benchmarks.picture", *named, picture)
    run_module("benchmarks.picture", *named, picture, "--check")
    bars = [e.get("class") for e in ElementTree.parse(picture).iter() if e.tag.endswith("rect")]
    assert bars.count("p1") == (6 if HAS_TORCH else 1)  # quick workloads, and the legend


def test_a_table_without_results_is_unchanged(results_file, tmp_path):
    results = json.loads(results_file.read_text())
    results["workloads"] = [w for w in results["workloads"] if w["kind"] == "backward"]
    gradients = tmp_path / "gradients.json"
    gradients.write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    markers = "<!-- gradient table: start -->\n<!-- gradient table: end -->\n"
    readme.write_text(markers)  # and no markers of the other table
    run_module("benchmarks.operations.table", gradients, readme)
    assert "| dense gradient, max, 10 k rows |" in readme.read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_process_figures_are_complete(tmp_path):
    path = tmp_path / "process.json"
    run_module("benchmarks.callers.process", "--quick", "--json", path)
    results = json.loads(path.read_text())
    assert len(results["threads"]) == 3
    assert len(results["gradients"]) == 8
    assert len(results["tables"]) == 5
    groups = [results[name].values() for name in ("threads", "memory", "gradients", "tables")]
    figures = [results["import"], *(entry for group in groups for entry in group)]
    assert all(math.isfinite(entry["result"]) for entry in figures)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_figures_of_callers_are_complete(tmp_path):
    path = tmp_path / "callers.json"
    run_module("benchmarks.callers", "--quick", "--json", path)
    loads = json.loads(path.read_text())["loads"]
    assert list(loads) == ["8 callers, mixed"]
    for ways in loads.values():
        assert list(ways) == ["shared", "apart", "serial"]
        for (figures,) in ways.values():
            assert figures["calls/s"] > 0
            assert 0 < figures["p50 ms"] <= figures["p99 ms"]


def test_figures_of_waiting_are_complete(tmp_path):
    path = tmp_path / "waiting.json"
    run_module("benchmarks.callers.waiting", "--quick", "--json", path)
    settings = json.loads(path.read_text())["settings"]
    assert list(settings) == ["default", "OMP_WAIT_POLICY=passive"]
    for (figures,) in settings.values():
        assert len(figures) == 4
        assert all(math.isfinite(figure) for figure in figures.values())
        assert figures["a call, ms"] > 0


@pytest.fixture(scope="module")
def pipeline_file(tmp_path_factory):
    for package in ("pyarrow", "click", "rich"):  # of `embag pool`
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("pipeline") / "pipeline.json"
    sizes = ["--rows=3000", "--part=2000", "--items=500", "--rounds=1", "--folder", path.parent]
    names = ["embag", "embag-serial", "torch-threads", "numpy-take", "polars", "duckdb-batches"]
    run_module("benchmarks.pipeline", *sizes, "--json", path, "--contenders", *names)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="asks the system what a child has used")
def test_figures_of_pipelines_are_complete(pipeline_file):
    results = json.loads(pipeline_file.read_text())
    whole, part = results["files"]["events"], results["files"]["part"]
    missing = set(results["missing"])
    assert set(whole) == {"embag", "embag-serial", "torch-threads"} - missing
    assert set(part) == {"embag", "numpy-take", "polars", "duckdb-batches"} - missing
    for file, n_rows in ((whole, 3000), (part, 2000)):
        for name, figures in file.items():
            assert figures["rows"] == n_rows
            assert figures["rows/s"] > 0
            assert figures["times"] > 0
            assert figures["peak bytes"] > 10_000_000
            assert len(figures["parts, s"]) == (0 if name == "polars" else 3 + ("-" in name))
    assert {one["best"] for one in results["targets"]} <= {*whole, *part} - {"embag"}
    assert not list(pipeline_file.parent.glob("*/"))  # the files are deleted


@pytest.mark.skipif(sys.platform == "win32", reason="asks the system what a child has used")
def test_the_table_of_pipelines_is_written(pipeline_file, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- pipeline table: start -->\n<!-- pipeline table: end -->\n")
    run_module("benchmarks.pipeline.table", pipeline_file, readme)
    text = readme.read_text()
    assert "| `embag pool` | 3,000 |" in text
    assert "50 times as fast as a NumPy loop end to end" in text


def test_wrong_vectors_are_detected(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    run_module("benchmarks.pipeline.data", tmp_path, "--rows=50", "--part=50", "--items=20")
    events, out = tmp_path / "events.parquet", tmp_path / "out.parquet"
    run_module("benchmarks.pipeline.batches", "numpy", "serial", events, out)
    run_module("benchmarks.pipeline.check", events, out)
    pooled = pq.read_table(out)
    pq.write_table(pooled.slice(0, 20), out)
    assert run_module("benchmarks.pipeline.check", events, out, check=False).returncode
    turned = pooled["vector"].take(list(reversed(range(len(pooled)))))
    pq.write_table(pooled.set_column(1, "vector", turned), out)
    assert run_module("benchmarks.pipeline.check", events, out, check=False).returncode

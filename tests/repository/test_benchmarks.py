"""Small runs of the benchmarks, which check their results first. No figure is tested."""

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from processes import run_python

published = pytest.importorskip("benchmarks.published", reason="in the repository only")
machine = pytest.importorskip("benchmarks.machine")

ROOT = Path(__file__).resolve().parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None
HAS_SCIPY = importlib.util.find_spec("scipy") is not None
HAS_FBGEMM = HAS_TORCH and importlib.util.find_spec("fbgemm_gpu") is not None
HAS_ZENTORCH = HAS_TORCH and importlib.util.find_spec("zentorch") is not None
EMBAG = {"embag", "embag-again"}
LIMITED = EMBAG | {"embag-pinned", "limit"}
NUMPY = {"embag-numpy", "limit-numpy"}
EXPECTED = {  # per kind of workload, besides the peers
    "forward": LIMITED | NUMPY,
    "backward": EMBAG,
    "step": EMBAG,
    "quantized": LIMITED,
    "collection": LIMITED,
    "gather": EMBAG | {"embag-pinned"},
    "gather-out": EMBAG | {"embag-pinned"},
    "quantize": EMBAG,
    "update": EMBAG | {"two-calls", "one-thread", "limit"},
    "train": EMBAG,
    "train-collection": EMBAG,
    "matrix": LIMITED | NUMPY if HAS_SCIPY else {"limit", "limit-numpy"},
}

pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks" / "run.py").exists(), reason="benchmarks are in the repository only"
)


def expected_contenders(workload, missing):
    expected = EXPECTED[workload["kind"]] - set(missing)
    is_collection = workload["kind"] == "collection"
    is_int8 = workload["dtype"] == "int8"
    is_train = workload["kind"].startswith("train")  # beside FBGEMM
    if HAS_TORCH and workload["kind"] != "matrix" and not ((is_collection and is_int8) or is_train):
        expected.add("torch")
    if HAS_SCIPY and workload["kind"] == "matrix":
        expected.add("scipy")
    if HAS_TORCH and workload["kind"] == "backward" and workload["gradient"] == "sparse":
        expected.add("torch-uncoalesced")
    if HAS_FBGEMM and (is_collection or is_train):
        expected.add("fbgemm")
    if HAS_ZENTORCH and workload["kind"] in ("forward", "quantized", "gather", "collection"):
        expected.add("zentorch")
    return expected - set(workload["unsuited"])


def run_module(*arguments, **options):
    return run_python("-m", *arguments, cwd=ROOT, timeout=900, **options)


@pytest.fixture(scope="module")
def results_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "quick.json"
    contenders = [*sorted(LIMITED | NUMPY), "numpy"]
    contenders += ["two-calls", "one-thread"]
    contenders += ["torch", "torch-uncoalesced"] if HAS_TORCH else []
    contenders += ["fbgemm"] if HAS_FBGEMM else []
    contenders += ["zentorch"] if HAS_ZENTORCH else []
    contenders += ["scipy"] if HAS_SCIPY else []
    run_module("benchmarks.run", "--quick", "--json", path, "--contenders", *contenders)
    return path


def test_results_are_complete(results_file):
    results = json.loads(results_file.read_text())
    assert results["settings"] == {"quick": True, "rounds": 2}
    assert results["machine"]["cores"] >= 1
    assert results["versions"]["embag"]
    assert results["versions"]["level"]
    workloads = {workload["name"]: workload for workload in results["workloads"]}
    assert {"one-bag", "ragged-d64-2m", "max-d64-1m"} <= set(workloads)
    assert {"dense-max-d64-10k", "sparse-weighted-d64-1m", "step-d64-1m"} <= set(workloads)
    assert {"int8-d64-2m", "26-tables-batch-int8", "quantize-int8-1m"} <= set(workloads)
    assert {"gather-d64-2m", "gather-out-d64-2m", "gather-int8-d64-2m"} <= set(workloads)
    assert {"sum-d64-2m-2t", "26-tables-skewed-2t"} <= set(workloads)
    assert {"update-adagrad-d64-1m-2t", "train-sgd-d64-1m", "train-26-tables"} <= set(workloads)
    for workload in workloads.values():
        contenders = workload["contenders"]
        expected = expected_contenders(workload, results["missing"])
        others = {"numpy"} if workload["kind"] == "matrix" else {"numpy", "scipy"}
        assert set(contenders) - others == expected
        assert workload["n_threads"] == (2 if workload["name"].endswith("-2t") else 1)
        for figures in contenders.values():
            assert len(figures["seconds"]) == 2
            for key in ("ns per row", "us per call", "GB/s"):
                assert math.isfinite(figures[key])
                assert figures[key] > 0
            for baseline in ("torch", "torch-uncoalesced", "two-calls", "one-thread", "zentorch",
                             "fbgemm", "scipy", "numpy"):  # fmt: skip
                assert (figures[f"times {baseline}"] is not None) == (baseline in contenders)
            for other in ("limit", "limit-numpy"):
                assert (figures[f"share of {other}"] is not None) == (other in contenders)
            assert (figures["share of pinned"] is not None) == ("embag-pinned" in contenders)
            assert (figures["times again"] is not None) == ("embag-again" in contenders)
            assert set(figures["targets met"]) == set(figures["targets"]) & set(contenders)


TABLES = {
    "forward": "benchmark table",
    "inference": "inference table",
    "threads": "thread table",
    "gradients": "gradient table",
    "matrices": "matrix table",
    "gathers": "gather table",
    "training": "training table",
}


def publish(folder, run, name):
    """Publish a run as one of a processor of this name."""
    folder.mkdir(exist_ok=True)
    run["machine"] |= {"name": f"Processor {name}", "key": name}
    for workload in run["workloads"]:
        published.add(run, workload, folder)


@pytest.fixture
def folder(results_file, tmp_path):
    path = tmp_path / "results"
    publish(path, json.loads(results_file.read_text()), "one")
    return path


def make_page(path, markers):
    texts = [f"<!-- {name}: start -->\n<!-- {name}: end -->\n" for name in markers]
    path.write_text("before\n" + "between\n".join(texts) + "after\n")
    return path


def write_and_check(module, page, folder):
    """Run a module; with --check it fails before, and not behind that."""
    arguments = module, page, "--results", folder
    assert run_module(*arguments, "--check", check=False).returncode
    run_module(*arguments)
    run_module(*arguments, "--check")
    return page.read_text()


def test_results_are_published_by_group_and_processor(folder, results_file):
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(f"{group}-one.json" for group in TABLES)
    forward = folder / "forward-one.json"
    before = json.loads(forward.read_text())
    again = json.loads(results_file.read_text())
    again["machine"]["key"] = "one"
    workload = next(w for w in again["workloads"] if w["name"] == "max-d64-1m")
    published.add(again, workload | {"load": 7.5}, folder)
    after = json.loads(forward.read_text())
    assert [w["name"] for w in after["workloads"]] == [w["name"] for w in before["workloads"]]
    assert [w["load"] for w in after["workloads"]].count(7.5) == 1
    again["versions"]["numpy"] = "another"
    published.add(again, workload, folder)
    assert len(json.loads(forward.read_text())["workloads"]) == 1


def test_incomplete_results_are_not_published():
    failed = run_module("benchmarks.run", "--quick", "--publish", check=False)
    assert failed.returncode == 2
    assert "--publish" in failed.stderr


def test_tables_are_written_and_checked(folder, tmp_path):
    page = make_page(tmp_path / "page.md", TABLES.values())
    text = write_and_check("benchmarks.operations.table", page, folder)
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    forward, inference, threads, gradients, matrices, gathers, training = text.split("\nbetween\n")
    assert "| max, D = 64, 1 M rows |" in forward
    assert "of the best pinned candidate" in forward
    assert "| dense gradient, max, 10 k rows |" in gradients
    assert "| 8-bit sum, D = 64, 2 M rows | 72 |" in inference
    assert "Processor one, 2 threads of" in threads
    assert "| `X @ W`, D = 64, 10 k rows, 512 rows of X with 40 entries |" in matrices
    assert "| 8 bits to float32, D = 64, 2 M rows, 40,960 ids |" in gathers
    assert "| Adagrad, two threads |" in training
    assert "Processor one, 1 thread of" in training


def test_processors_are_compared_side_by_side(folder, results_file, tmp_path):
    publish(folder, json.loads(results_file.read_text()), "other")
    page = make_page(tmp_path / "page.md", TABLES.values())
    text = write_and_check("benchmarks.operations.table", page, folder)
    heading = "| backward pass: times as fast as the best peer | Processor one | Processor other |"
    assert heading in text
    assert text.count("| dense gradient, max, 10 k rows |") == 3
    assert text.count("**Processor other**") == len(TABLES)


def test_the_picture_is_drawn_and_checked(folder, results_file, tmp_path):
    publish(folder, json.loads(results_file.read_text()), "other")
    picture = tmp_path / "speed.svg"
    picture.write_text("")
    write_and_check("benchmarks.picture", picture, folder)
    bars = [e.get("class") for e in ElementTree.parse(picture).iter() if e.tag.endswith("rect")]
    assert bars.count("p1") == (6 if HAS_TORCH else 1)  # quick workloads, and the legend


def test_a_chart_is_drawn_for_each_processor(folder, results_file, tmp_path):
    publish(folder, json.loads(results_file.read_text()), "other")
    page = make_page(tmp_path / "page.md", ["charts"])
    text = write_and_check("benchmarks.speed_charts", page, folder)
    for name in ("one", "other"):
        assert f"(speed-{name}.svg)" in text
        chart = ElementTree.parse(tmp_path / f"speed-{name}.svg")
        bars = [e for e in chart.iter() if e.tag.endswith("rect")]
        assert bool(bars) == (HAS_TORCH or HAS_SCIPY)


def test_plots_are_drawn_and_checked(folder, tmp_path):
    for package in ("ml_dtypes", "fastapi", "uvicorn"):
        pytest.importorskip(package)
    for name in ("curves", "latency"):
        run_module(f"benchmarks.{name}", "--quick", "--json", folder / f"{name}-one.json")
    run_module("benchmarks.errors", "--json", folder / "errors.json")
    kinds = ("width", "encoding", "curve", "latency", "error")
    page = make_page(tmp_path / "page.md", [f"{kind} plots" for kind in kinds])
    text = write_and_check("benchmarks.charts", page, folder)
    names = ("encoding", "threads", "ids", "bags", "tables", "latency")
    for name in [*(f"{name}-one" for name in names), "errors"]:
        assert f"(charts/{name}.svg)" in text
        chart = ElementTree.parse(tmp_path / "charts" / f"{name}.svg")
        assert chart.getroot().get("viewBox").startswith("0 0 480 ")
    assert "| p99.9 |" in text
    assert "| random numbers | 8 bits | 8 |" in text


def test_a_table_without_results_is_unchanged(folder, tmp_path):
    for path in folder.glob("*"):
        if not path.name.startswith("gradients"):
            path.unlink()
    page = make_page(tmp_path / "page.md", ["gradient table"])  # no markers of other tables
    run_module("benchmarks.operations.table", page, "--results", folder)
    assert "| dense gradient, max, 10 k rows |" in page.read_text()


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name", "key"),
    [
        ("AuthenticAMD", 26, 2, "AMD family 26 model 2 (Zen 5)", "amd-26-2"),
        ("AuthenticAMD", 25, 17, "AMD family 25 model 17 (Zen 4)", "amd-25-17"),
        ("AuthenticAMD", 25, 1, "AMD family 25 model 1 (Zen 3)", "amd-25-1"),
        ("GenuineIntel", 6, 143, "Intel family 6 model 143", "intel-6-143"),
    ],
)
def test_processors_are_named_by_family_and_model(tmp_path, vendor, family, model, name, key):
    path = tmp_path / "cpuinfo"
    lines = ["processor\t: 0", f"vendor_id\t: {vendor}", f"cpu family\t: {family}"]
    lines += [f"model\t\t: {model}", "model name\t: CPU (R)", "", "processor\t: 1"]
    path.write_text("\n".join(lines))
    found = machine.processor(path)
    assert (found["name"], found["key"]) == (name, key)
    path.write_text("processor\t: 0\nmodel name\t: A 76\n")
    assert machine.processor(path) == {"processor": "A 76", "name": "A 76", "key": "a-76"}


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


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="asks for the processors")
def test_figures_of_callers_beside_burners_are_complete(tmp_path):
    path = tmp_path / "busy.json"
    run_module("benchmarks.callers", "--quick", "--burners", "1", "--json", path)
    results = json.loads(path.read_text())
    settings = {"embag", "embag, one thread"}
    settings |= {"embag, EMBAG_THREADS=fixed", "embag, OMP_WAIT_POLICY=passive"}
    settings |= {"torch", "torch, one thread"} if HAS_TORCH else set()
    assert len(results["loads"]) == 4  # idle and busy, large and small
    for by_setting in results["loads"].values():
        assert set(by_setting) == settings
        for (figures,) in by_setting.values():
            assert figures["calls/s"] > 0
            assert 0 < figures["p50 ms"] <= figures["p99 ms"]
    assert set(results["phases"]) == settings
    for (phases,) in results["phases"].values():
        assert len(phases["mean ms"]) == 3


def test_figures_of_waiting_are_complete(tmp_path):
    path = tmp_path / "waiting.json"
    run_module("benchmarks.callers.waiting", "--quick", "--json", path)
    settings = json.loads(path.read_text())["settings"]
    assert list(settings) == ["default", "OMP_WAIT_POLICY=passive"]
    for (figures,) in settings.values():
        assert len(figures) == 4
        assert all(math.isfinite(figure) for figure in figures.values())
        assert figures["a call, ms"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="drops pages from the page cache")
def test_the_table_of_pages_is_written(tmp_path):
    path, page = tmp_path / "pages.json", tmp_path / "page.md"
    folder = ROOT / "build"  # on a disk: tmp_path may be in memory
    folder.mkdir(exist_ok=True)
    part = ["--kinds", "8 bits", "--work", "requests", "--folder", folder]
    run_module("benchmarks.pages", "--quick", "--json", path, *part)
    lookups = json.loads(path.read_text())["lookups"]
    assert [one["in memory"] for one in lookups] == ["cold", "half", "warm"]
    assert all(one["off"] > 0 and one["on"] > 0 for one in lookups)
    page.write_text("<!-- pages table: start -->\n<!-- pages table: end -->\n")
    run_module("benchmarks.pages.table", path, page)
    run_module("benchmarks.pages.table", path, page, "--check")
    assert "| 8 bits, requests, 1 thread |" in page.read_text()


@pytest.mark.torch
def test_a_small_call_of_a_layer():
    pytest.importorskip("torch")
    output = run_module("benchmarks.small_layer", "--rounds", "1")
    assert "2-D ids: torch" in output.stdout


@pytest.mark.ray
def test_the_tables_of_shards_are_written(tmp_path):
    pytest.importorskip("ray")
    path, page = tmp_path / "sharded.json", tmp_path / "page.md"
    run_module("benchmarks.sharded", "--quick", "--json", path)
    results = json.loads(path.read_text())
    for setting in ("default", "sent with calls"):
        assert all(one["call"] > one["local"] > 0 for one in results[setting]["calls"])
    names = ("calls table", "parts table", "clusters table")
    page.write_text("".join(f"<!-- {name}: start -->\n<!-- {name}: end -->\n" for name in names))
    run_module("benchmarks.sharded.table", path, page)
    run_module("benchmarks.sharded.table", path, page, "--check")
    assert "| 512, cut by rows, exact |" in page.read_text()


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


def test_the_table_of_strings_is_written():
    for package in ("pandas", "polars", "pyarrow", "tokenizers"):
        pytest.importorskip(package)
    printed = run_python(
        "-m", "benchmarks.strings", "--strings", "2000", "--vocabulary", "100", "--rounds", "1",
        cwd=ROOT,
    ).stdout  # fmt: skip
    assert printed.startswith("| | ns per string | prepare, ms |\n|---|--:|--:|\n| a `dict`")
    assert "| tokenizers, `WordLevel`, text to ids | " in printed


@pytest.mark.skipif(not HAS_SCIPY, reason="needs scipy")
def test_long_format():
    sizes = ["--events=3000", "--users=600", "--items=500", "--rounds=2"]
    output = run_module("benchmarks.long_format", *sizes).stdout
    for name in ("embag", "CSR", "add.at", "add.reduceat"):
        assert f" {name}: " in output

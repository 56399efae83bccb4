"""The soak reports no problem without a fault, and every planted fault."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import SCRIPTS, run_python

ROOT = Path(__file__).resolve().parents[2]
MARKERS = "<!-- soak: start -->\n<!-- soak: end -->"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc"),
    pytest.mark.skipif(
        any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn", "psutil")),
        reason="fastapi, uvicorn or psutil is not installed",
    ),
    pytest.mark.skipif(not (ROOT / "benchmarks").exists(), reason="in the repository only"),
]


def run(*command, **options):
    return run_python(*command, cwd=ROOT, timeout=300, **options)


@pytest.fixture(scope="module")
def soak():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        yield importlib.import_module("tools.soak.__main__")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the soak for some seconds, and check its page."""
    folder = tmp_path_factory.mktemp("soak")
    page = folder / "soak.md"
    page.write_text(f"before\n{MARKERS}\nafter\n")
    output = folder / "soak.json"
    run("-m", "tools.soak", "--minutes", "0.06", "--json", output)
    run("-m", "tools.soak.page", output, page)
    assert page.read_text().startswith("before\n<!-- soak: start -->\n`python -m tools.soak")
    assert "**Problems**: none." in page.read_text()
    run("-m", "tools.soak.page", output, page, "--check")
    page.write_text(page.read_text().replace("**Problems**: none.", "**Problems**: few."))
    assert run("-m", "tools.soak.page", output, page, "--check", check=False).returncode
    return json.loads(output.read_text())


def test_a_run_is_complete(results):
    assert results["problems"] == []
    kinds = {k: v for part in results["parts"].values() for k, v in part["kinds"].items()}
    assert len(kinds) == 25
    for figures in kinds.values():
        assert figures["calls"] > 0
        assert 0 < figures["p50, us"] <= figures["p99, us"] <= figures["p99.9, us"]
    for part in results["parts"].values():
        assert part["numbers"]["ids out of range"] > 0
        assert part["numbers"]["values compared"] > 0


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (lambda kind, process: kind.update({"errors": 1}), "one bag: 1 errors"),
        (lambda kind, process: kind.update({"wrong results": 2}), "one bag: 2 wrong results"),
        (
            lambda kind, process: kind.update({"longest pause, s": 61}),
            "one bag: no call for 61 s",
        ),
        (
            lambda kind, process: kind.update({"calls": 0, "longest pause, s": 3.6}),
            "one bag: no call for 4 s",
        ),
        (
            lambda kind, process: process.update({"growth, MB": 17}),
            "library: grew by 17 MB",
        ),
        (
            lambda kind, process: process.update({"growth, threads": 9}),
            "library: grew by 9 threads",
        ),
        (
            lambda kind, process: process.update({"growth, open files": 17}),
            "library: grew by 17 open files",
        ),
    ],
)
def test_bad_figures_are_reported(soak, results, monkeypatch, capsys, plant, message):
    parts = copy.deepcopy(results["parts"])
    plant(parts["library"]["kinds"]["one bag"], parts["library"]["processes"]["library"])
    assert soak.find_problems(parts) == [message]
    monkeypatch.setattr(soak, "run_parts", lambda seconds: parts)
    monkeypatch.setattr(sys, "argv", ["soak"])
    with pytest.raises(SystemExit) as end:
        soak.main()
    assert end.value.code == 1
    assert f"- {message}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("minutes", "errors", "is_published"), [("10", 0, True), ("9.9", 0, False), ("10", 1, False)]
)
def test_ten_minutes_without_a_problem_are_published(
    soak, results, monkeypatch, tmp_path, minutes, errors, is_published
):
    parts = copy.deepcopy(results["parts"])
    parts["library"]["kinds"]["one bag"]["errors"] = errors
    monkeypatch.setattr(soak, "run_parts", lambda seconds: parts)
    monkeypatch.setattr(soak, "PUBLISHED", tmp_path / "published.json")
    monkeypatch.setattr(soak, "PAGE", tmp_path / "page.md")
    soak.PAGE.write_text(MARKERS)
    output = tmp_path / "new" / "soak.json"
    arguments = ["--minutes", minutes, "--json", str(output), "--publish"]
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])
    with pytest.raises(SystemExit):
        soak.main()
    assert json.loads(output.read_text())["minutes"] == float(minutes)
    assert soak.PUBLISHED.exists() == is_published
    assert (soak.PAGE.read_text() != MARKERS) == is_published


FAULTS = {  # functions of soak_with_a_fault.py, and what must be among the problems
    "wrong_results": [
        "one bag: a wrong result: max of table 0",
        "ids out of range, not ",
        "MemoryError: planted",
        "library: grew by",
        "gradient and step: ",
    ],
    "collections_that_replace_nothing": [
        "request of 26 tables, by name: a wrong result: not that of a state of the tables",
        "request of remapped tables: a wrong result: not that of a state of the tables",
        "ids out of range: [",
        "call that must raise: a wrong result: no ValueError",
    ],
    "wrong_training": [
        "training step: a wrong result: table of ",
        "training step of a remapped table: a wrong result: state 1 of ",
        "training step of a collection: a wrong result: ",
        "save and load of a checkpoint: a wrong result: FTRL of float64: 2 steps of 1",
        "load of a checkpoint: a wrong result: checkpoint 1, not ",
        "load of a checkpoint: a wrong result: another checksum of checkpoint ",
    ],
    "wrong_tables": [
        "map of a table file, and bags: a wrong result: not that of table_1.safetensors, ",
        "map of a table file, and bags: a wrong result: a table loaded before from table_0",
        "copy of a table file, and bags: a wrong result: not that of table_1.safetensors, ",
        "bags of a remapped table: a wrong result: sum of remapped table ",
        "request of remapped tables: a wrong result: not that of a state of the tables",
        " open files",
    ],
    "child_that_hangs": ["RuntimeError: in the child: it hangs"],
    "child_that_dies": ["RuntimeError: in the child: it died; exit status 3"],
    "threads_that_accumulate": ["threads ran, more than", "gradient and step: hangs, here:"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_library_are_found(soak, name):
    report = json.loads(run(SCRIPTS / "soak_with_a_fault.py", name).stdout)
    found = soak.find_problems({"library": report})
    for message in FAULTS[name]:
        assert any(message in problem for problem in found), (message, found)


@pytest.fixture
def problems_of_service(soak, monkeypatch):
    """Return a function that runs the soak of a service and returns the problems it reports."""
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS), prepend=os.pathsep)

    def run_service(arguments):
        code = f"import json; from tools.soak import service; report = service.run({arguments})"
        printed = run("-c", f"{code}; print(json.dumps(report))").stdout
        return soak.find_problems({"service": json.loads(printed.splitlines()[-1])})

    return run_service


@pytest.mark.slow
def test_a_service_that_never_replaces_tables_is_found(problems_of_service):
    found = problems_of_service('2, "stale_service", late_seconds=0.2')
    assert any(", with the contents [1" in problem for problem in found), found


@pytest.mark.slow
def test_faults_of_the_service_are_found(problems_of_service):
    found = problems_of_service('2, "faulty_service"')
    for message in (
        "score over HTTP: a wrong result: 500",
        ", with the contents [0",
        "ids out of range: ",
    ):
        assert any(message in problem for problem in found), (message, found)


def test_a_part_that_dies_is_a_problem(soak):
    process = subprocess.Popen(
        [sys.executable, "-c", "raise SystemExit(3)", "", "tools.soak.library"],
        stdout=subprocess.PIPE,
    )
    (message,) = soak.finish(process, 60)["problems"]
    assert message == "tools.soak.library: status 3; see its output on stderr"


def test_a_long_report_is_read_completely(soak):
    process = subprocess.Popen(
        [sys.executable, "-c", "print([0] * 100_000)"], stdout=subprocess.PIPE, text=True
    )
    assert soak.finish(process, 60) == [0] * 100_000

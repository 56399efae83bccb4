"""The soak finds nothing where nothing is wrong, and each fault that is planted."""

import copy
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).resolve().parent.parent
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
        yield importlib.import_module("benchmarks.soak.__main__")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run the soak for some seconds; that it ends well is the first test."""
    folder = tmp_path_factory.mktemp("soak")
    page = folder / "soak.md"
    page.write_text(f"before\n{MARKERS}\nafter\n")
    output = folder / "soak.json"
    run("-m", "benchmarks.soak", "--minutes", "0.06", "--json", output)
    run("-m", "benchmarks.soak.page", output, page)
    assert page.read_text().startswith("before\n<!-- soak: start -->\n`python -m benchmarks.soak")
    assert "**Problems**: none." in page.read_text()
    run("-m", "benchmarks.soak.page", output, page, "--check")
    page.write_text(page.read_text().replace("**Problems**: none.", "**Problems**: few."))
    assert run("-m", "benchmarks.soak.page", output, page, "--check", check=False).returncode
    return json.loads(output.read_text())


def test_a_run_is_whole(results):
    assert results["problems"] == []
    kinds = {k: v for part in results["parts"].values() for k, v in part["kinds"].items()}
    assert len(kinds) == 14
    for figures in kinds.values():
        assert figures["calls"] > 0
        assert 0 < figures["p50, us"] <= figures["p99, us"] <= figures["p99.9, us"]
    for part in results["parts"].values():
        assert part["numbers"]["ids that are no rows"] > 0


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
            "library: its memory grew by 17 MB",
        ),
    ],
)
def test_what_the_figures_say_is_reported(soak, results, monkeypatch, capsys, plant, message):
    parts = copy.deepcopy(results["parts"])
    plant(parts["library"]["kinds"]["one bag"], parts["library"]["processes"]["library"])
    assert soak.problems(parts) == [message]
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


FAULTS = {  # what is planted, and what must be among the problems
    "results": (
        """
        right_bag, right_backward = embag.embedding_bag, embag.embedding_bag_backward
        kept = []

        def bag(ids, table, *arguments, **options):
            if options.get("mode") == "mean":
                kept.append(np.ones(100_000))
            result = right_bag(ids, table, *arguments, **options)
            if options.get("mode") == "max" and len(result[0]) == 1:
                result[0][-1, 3] += 1
            if options.get("mode") == "sum" and table.dtype == np.float16:
                return result[0], result[1] + 1
            return result

        def backward(*arguments, sparse, **options):
            if sparse:
                raise MemoryError("planted")
            return right_backward(*arguments, **options)

        embag.embedding_bag, embag.embedding_bag_backward = bag, backward
        """,
        [
            "one bag: a wrong result: max of table 0",
            "ids that are no rows, not ",
            "MemoryError: planted",
            "library: its memory grew by",
            "gradient and step: ",
        ],
    ),
    "collections": (
        """
        class Broken(embag.EmbeddingBagCollection):
            n_invalid = property(lambda self: dict.fromkeys(self.slices, 7))

            def replace(self, name, table):
                pass

        embag.EmbeddingBagCollection = Broken
        """,
        [
            "request of 26 tables, by name: a wrong result: that of no state of the tables",
            "ids that are no rows: [",
            "call that must raise: a wrong result: no ValueError",
        ],
    ),
    "a child that hangs": (
        """
        parent, right = os.getpid(), embag.embedding_bag
        library.CHILD_SECONDS = 1

        def bag(*arguments, **options):
            if os.getpid() != parent:
                time.sleep(1000)
            return right(*arguments, **options)

        embag.embedding_bag = bag
        """,
        ["RuntimeError: in the child: it hangs"],
    ),
    "a child that dies": (
        """
        parent, right = os.getpid(), embag.embedding_bag

        def bag(*arguments, **options):
            if os.getpid() != parent:
                os._exit(3)
            return right(*arguments, **options)

        embag.embedding_bag = bag
        """,
        ["RuntimeError: in the child: it died; exit status 3"],
    ),
    "threads": (
        """
        right = embag.embedding_bag_backward
        harness.HANG_SECONDS = 0.5

        def backward(*arguments, **options):
            while threading.active_count() < 30 * embag.get_num_threads():
                threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
            if options["sparse"]:
                time.sleep(1000)
            return right(*arguments, **options)

        embag.embedding_bag_backward = backward
        """,
        ["threads ran, more than", "gradient and step: hangs, here:"],
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_of_the_library_are_found(soak, name):
    fault, messages = FAULTS[name]
    lines = [
        "import json, os, threading, time",
        "import numpy as np",
        "import embag",
        "from benchmarks.soak import harness, library",
        *(line.removeprefix(" " * 8) for line in fault.splitlines()),
        "print(json.dumps(library.run(2)), flush=True)",
        "os._exit(0)",
    ]
    found = soak.problems({"library": json.loads(run("-c", "\n".join(lines)).stdout)})
    for message in messages:
        assert any(message in problem for problem in found), (message, found)


def problems_of_service(soak, arguments):
    script = "import json; from benchmarks.soak import service;"
    script += f"print(json.dumps(service.run({arguments})))"
    return soak.problems({"service": json.loads(run("-c", script).stdout.splitlines()[-1])})


def test_a_service_that_never_swaps_is_found(soak, tmp_path, monkeypatch):
    (tmp_path / "stale_app.py").write_text("""
import os
from pathlib import Path
import app

class Model(app.Model):
    def replace(self, path):
        pass

def create():
    return app.service(Model, Path(os.environ["MODEL"]))
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    found = problems_of_service(soak, '2, "stale_app", late_seconds=0.2')
    assert any(", with the contents [1" in problem for problem in found), found


def test_faults_of_the_service_are_found(soak, tmp_path, monkeypatch):
    (tmp_path / "broken_app.py").write_text("""
import os
from pathlib import Path
import app

class Model(app.Model):
    n_invalid = property(lambda self: {"feature_00": 1000})

    def dense(self, pooled):
        if pooled[0, 0] > 1:
            raise KeyError("planted")
        return super().dense(pooled) + (pooled[0, 0] < -1)

def create():
    return app.service(Model, Path(os.environ["MODEL"]))
""")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    found = problems_of_service(soak, '2, "broken_app"')
    for message in (
        "score over HTTP: a wrong result: 500",
        ", with the contents [0",
        "ids that are no rows: ",
    ):
        assert any(message in problem for problem in found), (message, found)


def test_a_part_that_dies_is_a_problem(soak):
    process = subprocess.Popen(
        [sys.executable, "-c", "raise SystemExit(3)", "", "benchmarks.soak.library"],
        stdout=subprocess.PIPE,
    )
    (message,) = soak.finish(process, 60)["problems"]
    assert message == "benchmarks.soak.library: status 3; it has said why"


def test_a_long_report_is_read_whole(soak):
    process = subprocess.Popen(
        [sys.executable, "-c", "print([0] * 100_000)"], stdout=subprocess.PIPE, text=True
    )
    assert soak.finish(process, 60) == [0] * 100_000

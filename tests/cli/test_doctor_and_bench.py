"""`embag doctor`, `embag bench`, and properties of all commands."""

import json

import numpy as np
import pytest
from command_line import run
from processes import SCRIPTS, run_python

import embag
from embag._kernels import strategies
from embag._process import waiting


def test_doctor_reports_settings():
    variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    done = run_python("-m", "embag", "doctor", "--json", **variables)
    found = {line["topic"]: line for line in json.loads(done.stdout)}
    assert "1 of" in found["threads"]["found"]
    assert found["waiting"] == {
        "topic": "waiting",
        "found": "OMP_WAIT_POLICY is passive",
        "advice": None,
    }
    assert found["embag"]["found"].startswith(embag.__version__)


def test_doctor_knows_of_the_wheels_runtime(capsys, tmp_path, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(waiting, "_LIBRARIES", tmp_path)
    (tmp_path / "libgomp-1234.so.1").touch()
    found = {line["topic"]: line for line in json.loads(run(capsys, "doctor", "--json").out)}
    assert found["waiting"]["found"] == "after a call, threads spin for a fraction of a millisecond"
    assert found["waiting"]["advice"] is None


def test_doctor_gives_advice():
    lower = embag.show_config("dicts")["levels"]["built"][0]
    done = run_python("-m", "embag", "doctor", EMBAG_ISA=lower)
    best = embag.show_config("dicts")["levels"]["supported"][-1]
    assert done.stdout.count("->") == int(done.stdout.splitlines()[-1].split()[0])
    if lower != best:
        assert f"-> EMBAG_ISA={lower} selects a lower level; unset it for {best}" in done.stdout


def test_doctor_without_threadpoolctl_reads_the_memory_map():
    code = "from embag.cli import doctor; print(doctor._MAPS.exists(), *doctor._runtimes())"
    hide = "import sys; sys.modules['threadpoolctl'] = None"
    readable, *runtimes = run_python("-c", f"{hide}; {code}").stdout.split()
    if embag.show_config("dicts")["OpenMP"] and readable == "True":
        assert any("omp" in name for name in runtimes), runtimes


def test_doctor_imports_the_given_module(capsys):
    run(capsys, "doctor", "--import", "json")
    printed = run(capsys, "doctor", "--import", "no_such_module", status=1)
    assert "--import no_such_module: No module named" in printed.err


def test_bench_measures_the_installed_contenders(capsys):
    figures = json.loads(run(capsys, "bench", "--rows", 100, "--rounds", 1, "--json").out)
    contenders = [figure["contender"] for figure in figures]
    assert contenders[0] == "embag, 1 thread"
    assert "NumPy" in contenders
    assert all(figure["ns_per_row"] > 0 for figure in figures)
    assert all(figure["table_rows"] == 100 for figure in figures)


def test_tune_prints_what_each_strategy_takes(capsys, tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.ones((5000, 8), np.float32))
    found = json.loads(run(capsys, "tune", path, "--threads", 1, "--json").out)
    assert [line["mode"] for line in found] == ["sum", "weighted sum", "max"]
    for line in found:
        assert line["settled"] is True
        assert set(line["ns_per_row"]) == set(strategies.CANDIDATES)
    text = run(capsys, "tune", path, "--threads", 1).out
    assert text.count("ns per row") == 3 * len(strategies.CANDIDATES)
    assert "sum, 1 thread: " in text


def test_tune_needs_entries_and_a_free_choice(capsys, tmp_path):
    path = tmp_path / "table.npy"
    np.save(path, np.ones((0, 8), np.float32))
    assert run(capsys, "tune", path).out == "the table has no entries\n"
    done = run_python("-m", "embag", "tune", str(path), EMBAG_PREFETCH="L1:32", check=False)
    assert "EMBAG_PREFETCH=L1:32 leaves nothing to choose" in done.stderr


def test_bench_prints_a_table(capsys):
    text = run(capsys, "bench", "--rows", 100, "--rounds", 1).out
    assert "x as fast" in text


def test_bench_checks_results_before_it_times(capsys, monkeypatch):
    from embag.cli import bench  # noqa: PLC0415

    pool = embag.embedding_bag
    monkeypatch.setattr(bench.embag, "embedding_bag", lambda *args, **more: 1 + pool(*args, **more))
    printed = run(capsys, "bench", "--rows", 100, "--rounds", 1, status=1)
    assert printed.err == (
        "embag bench: error: embag, 1 thread: sums must be those of NumPy in float64\n"
    )


@pytest.mark.parametrize("command", ["pool", "quantize", "info", "doctor", "bench", "demo"])
def test_every_command_has_help(command, capsys):
    text = run(capsys, command, "--help").out
    assert text.startswith(f"Usage: embag {command} ")
    assert command in run(capsys, "--help").out


def test_the_general_help_imports_no_command():
    code = "import sys; from embag.cli import main; main(['--help'])"
    code += "; print({'pyarrow', 'rich'} & set(sys.modules))"
    assert run_python("-c", code).stdout.endswith("set()\n")


@pytest.mark.parametrize("package", ["click", "rich", "pyarrow"])
def test_a_missing_extra_is_reported_in_one_line(package, tmp_path):
    np.save(tmp_path / "ids.npy", np.ones((2, 2), np.int64))
    command = [SCRIPTS / "run_without_package.py", package, "info", tmp_path / "ids.npy"]
    done = run_python(*command, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"embag: error: the package {package} is not installed; "
        "install the extra: pip install 'embag-cpu[cli]'\n"
    )

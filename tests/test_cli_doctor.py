"""`embag doctor`, `embag bench`, and the command line as a whole."""

import json

import numpy as np
import pytest
from cli_cases import run
from processes import run_python

import embag


def test_doctor_finds_what_is_set():
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


def test_doctor_advises():
    lower = embag.show_config("dicts")["levels"]["built"][0]
    done = run_python("-m", "embag", "doctor", EMBAG_ISA=lower)
    best = embag.show_config("dicts")["levels"]["supported"][-1]
    assert done.stdout.count("->") == int(done.stdout.splitlines()[-1].split()[0])
    if lower != best:
        assert f"-> EMBAG_ISA={lower} holds it back; unset, it is {best}" in done.stdout


def test_doctor_without_threadpoolctl_reads_the_map():
    code = (
        "import sys; sys.modules['threadpoolctl'] = None\n"
        "from embag.cli import main, doctor\n"
        "import embag\n"
        "if embag.show_config('dicts')['OpenMP'] and doctor._MAPS.exists():\n"
        "    assert any('omp' in name for name in doctor._runtimes()), doctor._runtimes()\n"
    )
    run_python("-c", code)


def test_doctor_imports_what_it_is_told(capsys):
    run(capsys, "doctor", "--import", "json")
    printed = run(capsys, "doctor", "--import", "no_such_module", status=1)
    assert "--import no_such_module: No module named" in printed.err


def test_bench_measures_who_is_there(capsys):
    figures = json.loads(run(capsys, "bench", "--rows", 100, "--rounds", 1, "--json").out)
    contenders = [figure["contender"] for figure in figures]
    assert contenders[0] == "embag, 1 thread"
    assert "NumPy" in contenders
    assert all(figure["ns_per_row"] > 0 for figure in figures)
    assert all(figure["table_rows"] == 100 for figure in figures)


def test_bench_for_people(capsys):
    text = run(capsys, "bench", "--rows", 100, "--rounds", 1).out
    assert "x as fast" in text


def test_bench_compares_before_it_times(capsys, monkeypatch):
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


def test_help_of_all_imports_no_command():
    code = (
        "import sys; from embag.cli import main; main(['--help'])\n"
        "print({'pyarrow', 'rich'} & set(sys.modules))"
    )
    assert run_python("-c", code).stdout.endswith("set()\n")


@pytest.mark.parametrize("package", ["click", "rich", "pyarrow"])
def test_missing_extra_is_one_line(package, tmp_path):
    np.save(tmp_path / "ids.npy", np.ones((2, 2), np.int64))
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "from embag.cli import main\n"
        f"sys.exit(main(['info', {str(tmp_path / 'ids.npy')!r}]))"
    )
    done = run_python("-c", code, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"embag: error: the package {package} is not installed; "
        "install the extra: pip install 'embag-cpu[cli]'\n"
    )

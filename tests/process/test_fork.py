"""Forks in every order: the child calls embag with many threads, and runs in parallel.

Each order runs in a process of its own with a time limit, since a fault may hang.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from processes import SCRIPTS, run_python

from embag import _core

TIME_LIMIT = 60

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs fork and /proc"),
    pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP"),
]


# Threads are counted, and NumPy's BLAS must not add any.
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def run(tmp_path, script, *arguments, **variables):
    """Run a script to its end, or fail."""
    # Python 3.12 and later warn of a fork in a process with threads.
    command = ("-W", "ignore", SCRIPTS / script, *arguments)
    variables = {**ONE_BLAS_THREAD, **variables}
    return run_python(*command, cwd=tmp_path, timeout=TIME_LIMIT, **variables).stdout


@pytest.mark.parametrize(
    "order",
    [
        "parent_without_threads",
        "parent_with_threads",
        "fork_from_another_thread",
        "forks_of_forks",
        "many_calling_threads_in_the_child",
        "fork_during_calls_of_other_threads",
        "fork_in_c",
        "second_openmp_with_threads",
        "child_that_calls_while_it_ends",
        "child_that_first_calls_while_it_ends",
    ],
)
def test_order(order, tmp_path):
    output = run(tmp_path, "fork_threaded_processes.py", order)
    if order == "child_that_calls_while_it_ends":
        assert "called at exit\n" in output
        # A free-threaded Python ends the last objects when modules are empty: they cannot call.
        if not sysconfig.get_config_var("Py_GIL_DISABLED"):
            assert "called at exit\ncalled during finalization\n" in output


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    run(tmp_path, "fork_threaded_processes.py", "pool_of_processes", method)


def test_every_function_works_in_a_child(tmp_path):
    run(tmp_path, "fork_threaded_processes.py", "every_function_in_a_child")


def test_a_child_raises_the_errors_of_kernels(tmp_path):
    run(tmp_path, "fork_threaded_processes.py", "errors_in_a_child")


def test_a_signal_handler_raises_after_the_call_is_done(tmp_path):
    run(tmp_path, "fork_threaded_processes.py", "signal_during_a_call")


def test_a_child_without_room_for_a_helper_is_serial_and_reports_it(tmp_path):
    assert "forked" not in run(tmp_path, "limit_threads.py", "no_helper_in_a_child")


def test_a_process_without_room_for_a_team_goes_on(tmp_path):
    # Without a check, OpenMP ends the process: "libgomp: Thread creation failed".
    run(tmp_path, "limit_threads.py", "no_team")


@pytest.mark.parametrize("variable", ["OMP_STACKSIZE", "GOMP_STACKSIZE"])
def test_the_stacks_that_are_tried_are_openmps(tmp_path, variable):
    # 512 MiB each: with the default stacks, two threads would fit.
    run(tmp_path, "limit_threads.py", "room_for_one_large_stack", **{variable: "512M"})


def test_a_team_that_openmp_keeps_small_is_tried_once_and_is_no_shortage(tmp_path):
    # OpenMP gives it at most one thread per processor.
    variables = {"OMP_DYNAMIC": "true", "OMP_STACKSIZE": "512M"}
    run(tmp_path, "limit_threads.py", "team_that_openmp_keeps_small", **variables)


def test_no_team_is_larger_than_openmps_limit(tmp_path):
    # No stack is tried, since none would find room.
    variables = {"OMP_THREAD_LIMIT": "1", "OMP_STACKSIZE": "512M"}
    run(tmp_path, "limit_threads.py", "team_within_the_thread_limit", **variables)


def test_a_team_that_grows_again_is_tried_again(tmp_path):
    # The threads of the first team of 8 have ended when the second one starts.
    run(tmp_path, "limit_threads.py", "team_that_grows_again", OMP_STACKSIZE="512M")


def test_threads_that_lead_their_first_teams_at_once_do_not_race(tmp_path):
    # The C library would reserve 64 MiB for the first allocation of each thread.
    variables = {"OMP_STACKSIZE": "64M", "MALLOC_ARENA_MAX": "1"}
    run(tmp_path, "limit_threads.py", "first_teams_of_several_threads", **variables)


def test_a_signal_handler_that_forks_during_calls(tmp_path):
    # The child returns from the handler into the interrupted call.
    run(tmp_path, "fork_threaded_processes.py", "signal_handler_that_forks")


def test_a_child_forked_in_c_forgets_calls_of_its_parent(tmp_path):
    run(tmp_path, "fork_threaded_processes.py", "fork_in_c_forgets_calls_of_the_parent")


@pytest.mark.torch
@pytest.mark.parametrize("first", ["torch", "embag"])
def test_with_torch_in_the_process(first, tmp_path):
    pytest.importorskip("torch")
    run(tmp_path, "fork_with_torch.py", first)


@pytest.mark.parametrize("options", [[], ["--threads", "4"]])
def test_gunicorn_with_preload(options, tmp_path):
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-W", "ignore", "-m", "gunicorn", "parallel_wsgi_app:app"),
        *("--preload", "--workers", "2", "--bind", f"127.0.0.1:{port}", "--timeout", "30"),
        *options,
    ]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        command,
        cwd=SCRIPTS,
        env={**os.environ, **ONE_BLAS_THREAD},
        stdout=log,
        stderr=log,
        start_new_session=True,
    )

    def get(path, timeout=20):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=timeout) as answer:
            return int(answer.read())

    def first_answer():
        deadline = time.monotonic() + TIME_LIMIT
        while True:
            try:
                return get("/parallel")
            except (urllib.error.URLError, ConnectionError) as error:
                refused = isinstance(getattr(error, "reason", error), ConnectionError)
                if not refused or server.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    try:
        workers = {first_answer()} | {get("/") for _ in range(20)}
        assert server.pid not in workers
        server.terminate()
        assert server.wait(TIME_LIMIT) == 0
    except Exception:
        log.seek(0)
        print(log.read())
        raise
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()


def test_a_child_that_is_short_of_memory_is_serial(tmp_path):
    # The helper may get the stack of a thread that has ended, but no memory for its state in
    # Python.
    run(tmp_path, "limit_threads.py", "no_memory_in_a_child")


def test_after_a_subinterpreter_has_existed(tmp_path):
    run(tmp_path, "fork_threaded_processes.py", "team_after_a_subinterpreter")

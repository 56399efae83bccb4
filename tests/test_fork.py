"""A process forks, in every order: the child calls embag with many threads, and is parallel.

Each order is a process of its own with a time limit, since what goes wrong hangs.
"""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from processes import run_python

import embag
from embag import _core

HERE = Path(__file__).parent
ROOT = Path(embag.__file__).parents[1]
TIME_LIMIT = 60

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs fork and /proc"),
    pytest.mark.skipif(not _core.build_info()[1], reason="needs OpenMP"),
]


def settings(**variables):
    # Threads are counted: NumPy's BLAS is to have none of its own.
    return {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": f"{HERE}:{ROOT}", **variables}


def run(tmp_path, code, **variables):
    """Run a script to its end, or fail."""
    script = tmp_path / "script.py"
    script.write_text(
        "from embag import _teams, _threads\nfrom fork_child import *\n" + textwrap.dedent(code)
    )
    # Later Pythons warn of any fork with threads.
    result = run_python(
        *("-W", "ignore", script), cwd=tmp_path, timeout=TIME_LIMIT, **settings(**variables)
    )
    return result.stdout


ORDERS = {
    "the parent used no threads": """
        in_child(call_in_parallel)
        call_in_parallel()
    """,
    "the parent used threads": """
        call_in_parallel()
        in_child(call_in_parallel)
        in_child(call_in_parallel)
        call()
    """,
    "another thread forks": """
        import threading

        call_in_parallel()
        failed = []

        def fork():
            try:
                call_in_parallel()
                in_child(call_in_parallel)
                call()
            except BaseException as error:
                failed.append(error)
                raise

        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        assert not failed
        call()
    """,
    "forks of forks": """
        import threading

        def third():
            call_in_parallel()

        def second():
            call_in_parallel()
            in_child(third)
            # From a thread that has led a team of its own in this child.
            def lead_and_fork():
                call_in_parallel()
                in_child(third)
            thread = threading.Thread(target=lead_and_fork)
            thread.start()
            thread.join()
            call()

        call_in_parallel()
        in_child(second)
        in_child(in_child, second)
        call()
    """,
    "many threads call in the child": """
        from concurrent.futures import ThreadPoolExecutor

        def many():
            call_in_parallel()
            with ThreadPoolExecutor(8) as pool:
                pending = [pool.submit(call) for _ in range(80)]
                for _ in range(20):
                    call()
                assert all(future.result() is None for future in pending)
            call()

        call_in_parallel()
        in_child(many)
    """,
    "a fork while other threads are in calls": """
        import threading

        stopped = threading.Event()

        def work():
            while not stopped.is_set():
                call()

        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        for thread in threads:
            thread.start()

        def child():
            assert not _threads._calls_in_flight()
            call_in_parallel()

        for _ in range(20):
            in_child(child)
        stopped.set()
        for thread in threads:
            thread.join()
    """,
    "C forks, and tells Python nothing": """
        import ctypes

        def fork():
            child = ctypes.PyDLL(None).fork()
            if child == 0:
                try:
                    call_in_parallel()
                    if not fork.is_child:
                        fork.is_child = True
                        fork()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitpid(child, 0)[1] == 0

        fork.is_child = False
        call_in_parallel()
        fork()
    """,
    "another OpenMP has threads too": """
        import ctypes, shutil

        paths = {line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}
        assert len(paths) <= 1                  # none where it is another compiler's
        for path in paths:
            other = ctypes.CDLL(shutil.copy(path, os.getcwd()))
            seen = []
            note = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(seen.append)
            other.GOMP_parallel(note, None, 3, 0)
            assert len(seen) == 3 == n_alive()
        call_in_parallel()
        in_child(call_in_parallel)
        call()
    """,
    "the child ends as Python ends": """
        import atexit

        def end():
            call()
            print("called at exit")

        class Late:
            def __del__(self, call=call, finalizing=sys.is_finalizing, write=os.write):
                assert finalizing()
                call()
                write(1, b"called when all is over\\n")

        call_in_parallel()
        child = os.fork()
        if child == 0:
            atexit.register(end)
            call_in_parallel()
            late = Late()
        else:
            assert os.waitpid(child, 0)[1] == 0
    """,
    "the child never called before Python ends": """
        import atexit

        call_in_parallel()
        child = os.fork()
        if child == 0:
            atexit.register(call)
        else:
            assert os.waitpid(child, 0)[1] == 0
    """,
}


@pytest.mark.parametrize("order", ORDERS)
def test_order(order, tmp_path):
    output = run(tmp_path, ORDERS[order])
    if "called" in ORDERS[order]:
        assert "called at exit\ncalled when all is over\n" in output


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(method, tmp_path):
    run(
        tmp_path,
        f"""
        import multiprocessing

        def work(i):
            call_in_parallel() if i == 0 else call()
            return i

        if __name__ == "__main__":
            context = multiprocessing.get_context({method!r})
            call_in_parallel()
            process = context.Process(target=call_in_parallel)
            process.start()
            process.join()
            assert process.exitcode == 0
            # Workers are daemons, and the second set replaces the first.
            with context.Pool(2, initializer=call_in_parallel, maxtasksperchild=4) as pool:
                assert pool.map(work, [1] * 16, chunksize=1) == [1] * 16
            call()
        """,
    )


def test_every_function_works_in_a_child(tmp_path):
    run(
        tmp_path,
        """
        def everything(n):
            weights = np.linspace(0, 1, IDS.size, dtype=np.float32).reshape(IDS.shape)
            table = TABLE.copy()
            offsets = np.arange(0, IDS.size + 1, 10)
            ebc = embag.EmbeddingBagCollection(
                {"a": TABLE, "b": TABLE},
                [embag.Feature("x", "a"), embag.Feature("y", "b", mode="max")],
            )
            small = embag.quantize(TABLE, num_threads=n)
            yield small.packed
            yield small.dequantize(num_threads=n)
            yield embag.embedding_bag(IDS, small, num_threads=n)
            yield embag.embedding_bag(IDS, small, mode="max", return_max_indices=True,
                                      num_threads=n)[1]
            yield embag.embedding_bag(IDS, table, max_norm=1.0, num_threads=n)
            yield table
            yield ebc(IDS.reshape(-1), offsets, num_threads=n)
            yield ebc({"x": IDS, "y": IDS}, num_threads=n)
            for options in (
                {}, {"mode": "max"}, {"mode": "mean", "sparse": True},
                {"mode": "sum", "per_sample_weights": weights},
                {"mode": "sum", "per_sample_weights": weights, "sparse": True},
            ):
                grads = embag.embedding_bag_backward(
                    EXPECTED, IDS, TABLE, num_threads=n, **options)
                if options.get("sparse"):
                    yield grads.weight.values
                    yield grads.weight.indices
                    grads.weight.add_to(table, -0.1, num_threads=n)
                    yield table
                else:
                    yield grads.weight
                if "per_sample_weights" in options:
                    yield grads.per_sample_weights

        def child():
            for one, several in zip(everything(1), everything(N_THREADS), strict=True):
                assert (one == several).all()
            assert n_alive() > 3

        assert len(list(everything(N_THREADS))) == 19
        in_child(child)
        """,
    )


def test_what_a_kernel_raises_is_the_callers(tmp_path):
    run(
        tmp_path,
        """
        def fail(n_threads, kind):
            raise kind("no")

        def child():
            for kind in (RuntimeError, MemoryError, KeyboardInterrupt, SystemExit):
                try:
                    _threads.run(fail, 2, kind)
                except kind as error:
                    assert error.args == ("no",)
                else:
                    raise AssertionError(kind)
            assert not _threads._calls_in_flight()
            bad = IDS.copy()
            bad[-1, -1] = 2000
            try:
                embag.embedding_bag(bad, TABLE, num_threads=3)
            except IndexError as error:
                assert "2000 is out of range" in str(error)
            call()

        call()
        in_child(child)
        """,
    )


def test_a_signal_does_not_leave_before_the_call_is_done(tmp_path):
    run(
        tmp_path,
        """
        import signal, threading, time

        done = []

        def slow(n_threads):
            time.sleep(1)
            done.append(threading.get_ident() != main)

        def child():
            for _ in range(2):
                signal.setitimer(signal.ITIMER_REAL, 0.1, 0.1)
                try:
                    _threads.run(slow, 2)
                except KeyboardInterrupt:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    assert done == [True]
                else:
                    raise AssertionError("no interrupt")
                done.clear()
            assert not _threads._calls_in_flight()
            call()
            assert n_alive() == 1 + N_THREADS, n_alive()  # and the one that waits for the helper

        def interrupt(*_):
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

        main = threading.get_ident()
        signal.signal(signal.SIGALRM, interrupt)
        call_in_parallel()
        in_child(child)
        """,
    )


def test_where_no_helper_can_be_started_the_child_is_serial_and_says_so(tmp_path):
    output = run(
        tmp_path,
        """
        import resource

        def child():
            limit = (address_space_kib() + 4096) << 10     # a stack takes 8 MiB
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            call()
            assert n_alive() == 1, n_alive()
            notes = embag.show_config("dicts")["threads"]["notes"]
            assert notes[0].startswith("a forked process"), notes
            assert notes[1] == "the system let a team of 3 have no more than 1 thread(s)", notes
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
            call_in_parallel()

        in_child(child)     # of a parent whose stacks the child could take
        embag.show_config()
        """,
    )
    assert "forked" not in output


def test_where_no_team_can_be_started_the_process_goes_on(tmp_path):
    # Without a look before, OpenMP ends the process: "libgomp: Thread creation failed".
    run(
        tmp_path,
        """
        import resource

        limit = (address_space_kib() + 4096) << 10
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        call()
        assert n_alive() == 1
        notes = embag.show_config("dicts")["threads"]["notes"]
        assert notes == ["the system let a team of 3 have no more than 1 thread(s)"], notes
        """,
    )


def test_the_stacks_that_are_tried_are_openmps(tmp_path):
    # 512 MiB each: with the default stacks, two threads would fit.
    code = """
        import resource

        limit = (address_space_kib() << 10) + (600 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        call()
        assert n_alive() == 2, n_alive()
        assert _teams.shortage() == (3, 2)
    """
    for name in ("OMP_STACKSIZE", "GOMP_STACKSIZE"):
        run(tmp_path, code, **{name: "512M"})


def test_a_team_that_openmp_keeps_small_is_tried_once_and_no_shortage(tmp_path):
    # OpenMP gives it no more threads than there are processors.
    run(
        tmp_path,
        """
        import resource

        n = os.cpu_count() + 1
        call(n)
        assert _teams.shortage() is None
        n_there = n_alive()
        assert n_there < n, n_there
        limit = (address_space_kib() << 10) + (200 << 20)   # for no thread more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        call(n)
        assert _teams.shortage() is None
        assert n_alive() == n_there, n_alive()
        """,
        OMP_DYNAMIC="true",
        OMP_STACKSIZE="512M",
    )


def test_no_team_is_larger_than_openmps_limit(tmp_path):
    # Nothing is tried: a thread's stack would find no room.
    run(
        tmp_path,
        """
        import resource

        limit = (address_space_kib() << 10) + (200 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        call()
        with embag.num_threads(8):
            call(None)
        assert _teams.shortage() is None
        assert n_alive() == 1, n_alive()
        """,
        OMP_THREAD_LIMIT="1",
        OMP_STACKSIZE="512M",
    )


def test_a_team_that_grows_again_is_tried_again(tmp_path):
    # The threads of the first team of 8 are gone when the second one is wanted.
    run(
        tmp_path,
        """
        import resource

        call(8)
        call(2)
        while n_alive() > 2:  # they are still ending
            pass
        limit = (address_space_kib() << 10) + (600 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        call(8)
        assert _teams.shortage() in [(8, n) for n in range(2, 8)], _teams.shortage()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        call(8)
        assert _teams.shortage() is None
        assert n_alive() == 8, n_alive()
        """,
        OMP_STACKSIZE="512M",  # too large for the C library to keep those of ended threads
    )


def test_threads_that_lead_their_first_teams_at_once_do_not_race(tmp_path):
    run(
        tmp_path,
        """
        import resource
        import threading

        together, shortages = threading.Barrier(7), []

        def lead():
            together.wait()
            for n_threads in (8, 2, 8):
                call(n_threads)
                shortages.append(_teams.shortage())

        threads = [threading.Thread(target=lead) for _ in range(6)]
        for thread in threads:
            thread.start()
        limit = (address_space_kib() << 10) + (700 << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        together.wait()
        for thread in threads:
            thread.join()
        assert any(shortages)
        """,
        OMP_STACKSIZE="64M",
    )


def test_a_handler_of_a_signal_that_forks_in_the_middle_of_calls(tmp_path):
    # The child returns from the handler, to wherever the call was.
    run(
        tmp_path,
        """
        import random
        import signal
        import time

        random.seed(0)
        parent, children = os.getpid(), []

        def fork(*_):
            children.append(os.fork())

        signal.signal(signal.SIGALRM, fork)
        call()
        for _ in range(60):
            children.clear()
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-4, 3e-3))
            while not children:
                call()
            if os.getpid() != parent:
                call()
                os._exit(0)
            end = time.monotonic() + 20
            while os.waitpid(children[0], os.WNOHANG) == (0, 0):
                assert time.monotonic() < end, "a child hangs"
                time.sleep(0.001)
        """,
    )


def test_a_child_that_python_is_not_told_of_forgets_its_parents_calls(tmp_path):
    run(
        tmp_path,
        """
        import ctypes

        _threads._in_flight.add("of a thread that is not carried over")
        child = ctypes.PyDLL(None).fork()
        if child == 0:
            os._exit(len(_threads._calls_in_flight()))
        assert os.waitpid(child, 0)[1] == 0
        assert len(_threads._calls_in_flight()) == 1
        """,
    )


@pytest.mark.torch
@pytest.mark.parametrize("first", ["torch", "embag"])
def test_with_torch_in_the_process(first, tmp_path):
    pytest.importorskip("torch")
    # Where both are gcc's, the one that comes first brings the OpenMP of both.
    imports = "import torch" if first == "torch" else ""
    script = """
        import torch

        torch.set_num_threads(2)
        matrix = torch.ones(600, 600)
        product = matrix @ matrix               # by a team of torch's

        def child():
            call_in_parallel()
            in_child(call_in_parallel)

        call()
        matrix @ matrix
        in_child(child)
        call()
        assert (matrix @ matrix == product).all()
    """
    (tmp_path / "sitecustomize.py").write_text(imports)
    run(tmp_path, script, PYTHONPATH=f"{tmp_path}:{HERE}:{ROOT}")


APP = """
import fork_child

fork_child.call_in_parallel()  # in the master, before it forks


def app(environ, start_response):
    if environ["PATH_INFO"] == "/parallel":
        fork_child.call_in_parallel()
    else:
        fork_child.call()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % fork_child.os.getpid()]
"""


@pytest.mark.parametrize("options", [[], ["--threads", "4"]])
def test_gunicorn_with_preload(options, tmp_path):
    if importlib.util.find_spec("gunicorn") is None:
        pytest.skip("gunicorn is not installed")
    (tmp_path / "served.py").write_text(APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "gunicorn", "served:app", "--preload"]
    command += ["--workers", "2", "--bind", f"127.0.0.1:{port}", "--timeout", "30", *options]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **settings()},
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


def test_where_memory_is_short_the_child_is_serial(tmp_path):
    # The helper's stack may still be had, from those of threads that are not there any more;
    # its state in Python not.
    run(
        tmp_path,
        """
        import resource

        call()

        def child():
            resource.setrlimit(resource.RLIMIT_AS, (1 << 20,) * 2)
            result = np.empty_like(EXPECTED)
            embag.embedding_bag(IDS, TABLE, mode="sum", num_threads=3, out=result)

        for _ in range(5):
            in_child(child)
        """,
    )


def test_after_a_subinterpreter_has_existed(tmp_path):
    run(
        tmp_path,
        """
        try:
            import _interpreters as interpreters
        except ImportError:
            import _xxsubinterpreters as interpreters

        interpreters.destroy(interpreters.create())
        call()
        ebc = embag.EmbeddingBagCollection({"t": TABLE}, [embag.Feature("f", "t")])
        assert (ebc({"f": IDS}, num_threads=N_THREADS) == EXPECTED).all()
        grads = embag.embedding_bag_backward(EXPECTED, IDS, TABLE, mode="sum", sparse=True,
                                             num_threads=N_THREADS)
        assert len(grads.weight.indices) > 0
        assert (embag.quantize(TABLE, num_threads=N_THREADS).packed
                == embag.quantize(TABLE, num_threads=1).packed).all()
        assert n_alive() == N_THREADS
        """,
    )

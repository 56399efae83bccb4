"""Calls in new threads, and in forked children."""

import multiprocessing
import threading
from collections.abc import Callable
from typing import Any

from tools.soak.harness import Job, Timer

CHILD_SECONDS = 30  # the time limit for the calls of a forked child


def short_lived_thread(work: Callable[..., None]) -> Callable[[Timer], None]:
    """Return the same work in a new thread for each call, which leaves its OpenMP team behind."""
    failed: list[BaseException] = []

    def call(timer: Timer) -> None:
        try:
            work(timer, num_threads=2)
        except Exception as error:
            failed.append(error)

    def start(timer: Timer) -> None:
        thread = threading.Thread(target=call, args=(timer,))
        thread.start()
        thread.join()
        if failed:
            raise failed.pop()

    return start


def fork(calls: list[Job]) -> Callable[[Timer], None]:
    """Return work that forks a child, which runs these jobs; an error of the child is raised.

    The fork may happen during a call or a swap of any other thread.
    """
    context = multiprocessing.get_context("fork")

    def child(sender: Any) -> None:
        try:
            for job in calls:
                job.work(Timer())
            sender.send("")
        except BaseException as error:
            sender.send(f"{type(error).__name__}: {error}")

    def work(timer: Timer) -> None:
        receiver, sender = context.Pipe(duplex=False)
        with timer:
            process = context.Process(target=child, args=(sender,), daemon=True)
            process.start()
            sender.close()
            try:
                answer = receiver.recv() if receiver.poll(CHILD_SECONDS) else "it hangs"
            except EOFError:
                answer = "it died"
        process.kill()
        process.join()
        receiver.close()
        if answer:
            raise RuntimeError(f"in the child: {answer}; exit status {process.exitcode}")

    return work

"""Load on examples/serving under uvicorn: `python -m tools.soak.service SECONDS`.

Clients compare every score with that of NumPy. Meanwhile the file of one table is replaced every
few seconds, some ids are out of range, and workers are killed. Only a connection to a killed
worker may break. A line is printed when the service runs, then the results as JSON.
"""

import http.client
import itertools
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import embag
from tools.soak import harness
from tools.soak.harness import Job, Timer, WrongResultError

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "serving"))

import make_tables
import measure

N_WORKERS, N_CLIENTS = 2, 8
N_ROWS, N_USERS = 10_000, 200
INVALID = (-1, N_ROWS, 2**40)
TABLE = "feature_20"  # the table that is swapped
N_CONTENTS = 7  # different contents of the table, in rotation
# N_CONTENTS * SWAP_SECONDS must exceed LATE_SECONDS, the time that a worker has to swap.
# Otherwise the scores of all contents would be accepted.
SWAP_SECONDS, LATE_SECONDS = 4, 15
KILL_SECONDS = 10
REQUESTS_PER_CONNECTION = 200  # then a new connection, perhaps to another worker


class Service:
    """The running service: its workers, and the expected scores."""

    def __init__(self, folder: Path, port: int, workers: list[int], late_seconds: float) -> None:
        self.folder, self.port, self.late_seconds = folder, port, late_seconds
        self.workers = dict.fromkeys(workers)  # new ones follow in the order of first answers
        self.killed: set[int] = set()
        self.n_kills_begun = self.n_kills_done = 0
        self.n_swaps_begun = 0
        self.swap_times: list[float] = []
        self.make_answers()

    def make_answers(self) -> None:
        """Score all users with NumPy, for each content of the table that is swapped."""
        rng = np.random.default_rng(0)
        floats = {
            path.stem: embag.load_table(path).dequantize()
            for path in sorted(self.folder.glob("*.safetensors"))
        }
        shape = floats[TABLE].shape
        self.contents = [
            embag.load_table(self.folder / f"{TABLE}.safetensors", memory="copy"),
            *(embag.quantize(rng.standard_normal(shape, np.float32)) for _ in range(6)),
        ]
        users = make_tables.make_requests(N_USERS, N_ROWS)
        self.scores = np.empty((N_CONTENTS, N_USERS))
        with np.load(self.folder / "dense.npz") as arrays:
            *hidden, last = arrays.values()
        for content, table in enumerate(self.contents):
            floats[TABLE] = table.dequantize()
            x = np.array(
                [
                    np.concatenate([floats[name][ids].sum(axis=0) for name, ids in user.items()])
                    for user in users
                ]
            )
            for weight in hidden:
                x = np.maximum(x @ weight, 0)
            self.scores[content] = (x @ last)[:, 0]
        self.n_invalid = [Counter() for _ in users]
        for user, n_invalid in zip(users, self.n_invalid, strict=True):
            for name in rng.choice(list(user), rng.integers(0, 3), replace=False):
                user[name].insert(0, int(rng.choice(INVALID)))
                n_invalid[str(name)] += 1
        self.bodies = [json.dumps(user) for user in users]

    def swap(self, timer: Timer) -> None:
        self.n_swaps_begun += 1
        table = self.contents[self.n_swaps_begun % N_CONTENTS]
        with timer:
            embag.save_table(self.folder / f"{TABLE}.safetensors", table)
        self.swap_times.append(time.perf_counter())

    def n_swaps_due(self) -> int:
        """Return the number of swaps that every worker must have done by now."""
        late = time.perf_counter() - self.late_seconds
        return sum(moment < late for moment in self.swap_times)

    def kill(self, timer: Timer) -> None:
        """Kill the youngest worker, but never the first, whose memory is measured."""
        _first, *others = self.workers
        victims = [worker for worker in others if worker not in self.killed]
        if victims:
            self.n_kills_begun += 1
            self.killed.add(victims[-1])
            with timer:
                os.kill(victims[-1], signal.SIGKILL)
            self.n_kills_done += 1


class Client:
    """A connection to one worker at a time."""

    def __init__(self, service: Service, number: int) -> None:
        self.service = service
        self.turn = itertools.cycle(np.roll(range(N_USERS), number * 17))
        self.n_sent: dict[int, Counter[str]] = {}  # ids out of range, by worker and feature
        self.connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: str | None = None) -> Any:
        assert self.connection is not None
        self.connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise WrongResultError(f"{answer.status}: {text!r}")
        return json.loads(text)

    def connect(self) -> None:
        """Connect to any worker, and ask which one it is."""
        n_kills_done = self.service.n_kills_done
        self.connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
        self.n_left = REQUESTS_PER_CONNECTION
        try:
            self.worker = self.ask("GET", "/health")["process"]
        except (OSError, http.client.HTTPException):
            if self.service.n_kills_begun == n_kills_done:
                raise
            self.connect()
        self.service.workers.setdefault(self.worker)

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def work(self, timer: Timer) -> None:
        if self.connection is None:
            self.connect()
        user = int(next(self.turn))
        n_due = self.service.n_swaps_due()
        try:
            with timer:
                score = self.ask("POST", "/score", self.service.bodies[user])["score"]
        except (OSError, http.client.HTTPException):
            self.close()
            if self.worker not in self.service.killed:
                raise
            self.work(timer)
            return
        self.n_sent.setdefault(self.worker, Counter()).update(self.service.n_invalid[user])
        contents = [i % N_CONTENTS for i in range(n_due, self.service.n_swaps_begun + 1)]
        if not np.isclose(score, self.service.scores[contents, user], 1e-4, 1e-4).any():
            raise WrongResultError(f"{score}, with the contents {contents} of the table")
        timer.n_values += 1
        self.n_left -= 1
        if not self.n_left:
            self.close()


def count_invalid(service: Service, clients: list[Client]) -> list[str]:
    """Compare the ids out of range that were sent with those that each live worker has counted."""
    n_sent: dict[int, Counter[str]] = {}
    for client in clients:
        for worker, counts in client.n_sent.items():
            n_sent.setdefault(worker, Counter()).update(counts)
    waiting = n_sent.keys() - service.killed
    problems = []
    end = time.monotonic() + 30
    client = Client(service, 0)
    while waiting:
        if time.monotonic() > end:
            return [f"no answer from the workers {sorted(waiting)}"]
        client.connect()
        if client.worker in waiting:
            waiting.remove(client.worker)
            seen = Counter(client.ask("GET", "/health")["n_invalid"])
            if seen != n_sent[client.worker]:
                problems.append(f"ids out of range: {n_sent[client.worker]} sent, {seen} counted")
        client.close()
    return problems


def run(seconds: float, app: str = "app", late_seconds: float = LATE_SECONDS) -> dict[str, Any]:
    # uvicorn kills a worker that does not answer within this time, and waits as long for one
    # that was killed. Its default of 5 s is too short if all processors are busy.
    os.environ["UVICORN_TIMEOUT_WORKER_HEALTHCHECK"] = "10"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_tables.make(folder, N_ROWS)
        with measure.running(app, folder, N_WORKERS) as (port, workers):
            service = Service(folder, port, workers, late_seconds)
            clients = [Client(service, number) for number in range(N_CLIENTS)]
            jobs = [
                *(Job("score over HTTP", client.work) for client in clients),
                Job("save of a table that is served", service.swap, min(SWAP_SECONDS, seconds / 4)),
                Job("kill of a worker", service.kill, min(KILL_SECONDS, seconds / 4)),
            ]
            print("ready", flush=True)
            results = harness.run(jobs, seconds, {"worker of the service": workers[0]})
            results["problems"] += count_invalid(service, clients)
    results["numbers"] |= {
        "ids out of range": sum(sum(n.values()) for c in clients for n in c.n_sent.values()),
        "workers": len(service.workers),
    }
    return results


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]))), flush=True)

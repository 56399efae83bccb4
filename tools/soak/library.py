"""Load on the library, in one process: `python -m tools.soak.library SECONDS`.

Each kind of work is in a file of its own beside this one. The results are printed as JSON.
"""

import json
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import embag
from tools.soak import harness
from tools.soak.checkpoints import Checkpoints
from tools.soak.contents import N_TABLES, Request, make_table
from tools.soak.fixed_tables import bad_arguments, gradients, one_table
from tools.soak.harness import Job
from tools.soak.remapped_tables import N_REMAPPED, bags_of_remapped_table, make_remapped_table
from tools.soak.replaced_tables import Tables, by_name, end_to_end
from tools.soak.table_files import TableFiles
from tools.soak.threads_and_forks import fork, short_lived_thread
from tools.soak.training import N_GROUPS, TrainedCollection, steps_of_tables


def make_jobs(tables: Tables, remapped: Tables, folder: Path) -> list[Job]:
    return [
        *lookups(tables),
        *lookups_of_remapped_tables(remapped),
        *training(),
        *files(folder),
    ]


def lookups(tables: Tables) -> list[Job]:
    features = list(range(N_TABLES))
    small = [Request(seed, features, 1, 8) for seed in range(50)]
    large = [Request(seed, features, 64, 8) for seed in range(8)]
    parallel = one_table(0, 300, 40)
    in_child = [
        tables.job("a request", small, end_to_end),
        tables.job("a batch", large, end_to_end),
        Job("bags", partial(parallel, num_threads=2)),
        Job("bags in a new thread", short_lived_thread(parallel)),
    ]
    return [
        *(Job("one bag", one_table(0, 1, 40)) for _ in range(2)),
        *(tables.job("request of 26 tables, end to end", small, end_to_end) for _ in range(3)),
        *(tables.job("request of 26 tables, by name", small, by_name) for _ in range(2)),
        *(tables.job("batch of 64 requests", large, end_to_end) for _ in range(2)),
        *(Job("bags of a quantized table", one_table(n, 300, 40)) for n in (2, 3)),
        Job("bags of a float16 table", one_table(1, 300, 40)),
        Job("call in a new thread", short_lived_thread(parallel), pause=0.01),
        Job("call that must raise", bad_arguments()),
        Job("swap of a table", tables.swap, pause=0.02),
        Job("fork, and calls in the child", fork(in_child), pause=1),
    ]


def lookups_of_remapped_tables(remapped: Tables) -> list[Job]:
    requests = [Request(seed, list(range(N_REMAPPED)), 16, 8) for seed in range(20)]
    return [
        *(Job("bags of a remapped table", bags_of_remapped_table(n, 300, 40)) for n in (0, 2)),
        remapped.job("request of remapped tables", requests, end_to_end),
        remapped.job("request of remapped tables", requests, by_name),
        Job("swap of a remapped table", remapped.swap, pause=0.02),
    ]


def training() -> list[Job]:
    collection = TrainedCollection()
    return [
        *(Job("gradient and step", gradients(seed)) for seed in range(2)),
        *(Job("training step", steps_of_tables(number)) for number in range(3)),
        Job("training step of a remapped table", steps_of_tables(3, is_remapped=True)),
        *(Job("training step of a collection", collection.steps(n)) for n in range(N_GROUPS)),
    ]


def files(folder: Path) -> list[Job]:
    table_files, checkpoints = TableFiles(folder), Checkpoints(folder)
    return [
        Job("save of a table file", table_files.replace, pause=0.02),
        Job("map of a table file, and bags", table_files.loads("map")),
        Job("copy of a table file, and bags", table_files.loads("copy")),
        Job("save and load of a checkpoint", checkpoints.train_and_save, pause=0.05),
        Job("load of a checkpoint", checkpoints.load, pause=0.05),
    ]


def run(seconds: float) -> dict[str, Any]:
    tables, remapped = Tables(N_TABLES, make_table), Tables(N_REMAPPED, make_remapped_table)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # a save may hang
        jobs = make_jobs(tables, remapped, Path(folder))
        results = harness.run(jobs, seconds, {"library": os.getpid()})
    results["problems"] += [*tables.problems(), *remapped.problems()]
    # Each Python thread has at most one team: those of the jobs, the main thread, a thread that a
    # job has started, and one to spare.
    bound = (len(jobs) + 3) * embag.get_num_threads()
    most = results["processes"]["library"]["threads"][1]
    if most > bound:
        results["problems"].append(f"{most} threads ran, more than {bound}")
    n_sent = [*tables.n_sent, *remapped.n_sent]
    results["numbers"]["ids out of range"] = int(sum(counts.sum() for counts in n_sent))
    return results


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]))), flush=True)
    os._exit(0)  # a thread that hangs would keep the process alive

"""Plant a fault in the library, run the soak of the library, and print its report as JSON.

Run as ``soak_with_a_fault.py FAULT``; a fault is a function below.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np

import embag

sys.path.append(str(Path(__file__).parents[2]))
from tools.soak import harness, library, threads_and_forks

PARENT = os.getpid()
look_up, backward = embag.embedding_bag, embag.embedding_bag_backward


def wrong_results():
    """Return wrong values, raise, and leak memory."""
    kept = []

    def faulty_lookup(ids, table, *arguments, **options):
        if options.get("mode") == "mean":
            kept.append(np.ones(100_000))
        result = look_up(ids, table, *arguments, **options)
        if options.get("mode") == "max" and len(result[0]) == 1:
            result[0][-1, 3] += 1
        if options.get("mode") == "sum" and table.dtype == np.float16:
            return result[0], result[1] + 1
        return result

    def faulty_backward(*arguments, sparse, **options):
        if sparse:
            raise MemoryError("planted")
        return backward(*arguments, **options)

    embag.embedding_bag, embag.embedding_bag_backward = faulty_lookup, faulty_backward


def collections_that_replace_nothing():
    class Faulty(embag.EmbeddingBagCollection):
        n_invalid = property(lambda self: dict.fromkeys(self.slices, 7))

        def replace(self, name, table):
            pass

    embag.EmbeddingBagCollection = Faulty


def wrong_training():
    """Change a table and a state after steps, drop a step, and load wrong checkpoints."""
    update, load = embag.optim.Optimizer.update, embag.load_checkpoint
    update_collection = embag.EmbeddingBagCollection.update
    loads = []

    def faulty_update(self, *arguments, **options):
        update(self, *arguments, **options)
        if isinstance(self.table, embag.RemappedTable):
            for state in self.states.values():
                state[7] += 1
        elif type(self) is embag.optim.SGD and self.table.dtype == np.float16:
            self.table[7, 3] += 1

    def faulty_update_of_collection(self, *arguments, optimizers):
        name, *_ = optimizers
        update_collection(self, *arguments, optimizers={name: optimizers[name]})

    def faulty_load(path, *, return_metadata=False, verify=False):
        items, metadata = load(path, return_metadata=True)
        loads.append((items, metadata))
        if return_metadata:
            if len(loads) % 2:
                return loads[0]
            items["SGD"].table[7, 3] += 1
            return items, metadata
        items["FTRL"].n_steps += 1
        return items

    embag.optim.Optimizer.update = faulty_update
    embag.EmbeddingBagCollection.update = faulty_update_of_collection
    embag.load_checkpoint = faulty_load


def wrong_tables():
    """Replace no file, change a loaded table, leave files open, and map ids to other rows."""
    save, load, begin = embag.save_table, embag.load_table, embag.RemappedTable.__init__
    loaded = {}

    def faulty_save(path, table):
        if path.name != "table_1.safetensors" or not path.exists():
            save(path, table)

    def faulty_load(path, memory, *, verify):
        os.open(path, os.O_RDONLY)
        if path.name == "table_0.safetensors":
            loaded[memory] = load(path, "copy")
            return loaded[memory]
        loaded[memory][:] += 1
        return load(path, memory, verify=verify)

    def faulty_init(self, table, index_map=None, scales=None, first_id=0):
        begin(self, table, np.roll(index_map, 1), scales, first_id)

    embag.save_table, embag.load_table = faulty_save, faulty_load
    embag.RemappedTable.__init__ = faulty_init


def child_that_hangs():
    threads_and_forks.CHILD_SECONDS = 1

    def faulty_lookup(*arguments, **options):
        if os.getpid() != PARENT:
            time.sleep(1000)
        return look_up(*arguments, **options)

    embag.embedding_bag = faulty_lookup


def child_that_dies():
    def faulty_lookup(*arguments, **options):
        if os.getpid() != PARENT:
            os._exit(3)
        return look_up(*arguments, **options)

    embag.embedding_bag = faulty_lookup


def threads_that_accumulate():
    harness.HANG_SECONDS = 0.5

    def faulty_backward(*arguments, **options):
        while threading.active_count() < 100 * embag.get_num_threads():
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        if options["sparse"]:
            time.sleep(1000)
        return backward(*arguments, **options)

    embag.embedding_bag_backward = faulty_backward


if __name__ == "__main__":
    (fault,) = sys.argv[1:]
    harness.MOST_MESSAGES = 30  # so that one fault of a thread does not hide another
    globals()[fault]()
    print(json.dumps(library.run(2)), flush=True)
    os._exit(0)

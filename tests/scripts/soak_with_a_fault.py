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
from tools.soak import harness, library

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


def child_that_hangs():
    library.CHILD_SECONDS = 1

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
        while threading.active_count() < 30 * embag.get_num_threads():
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        if options["sparse"]:
            time.sleep(1000)
        return backward(*arguments, **options)

    embag.embedding_bag_backward = faulty_backward


if __name__ == "__main__":
    (fault,) = sys.argv[1:]
    globals()[fault]()
    print(json.dumps(library.run(2)), flush=True)
    os._exit(0)

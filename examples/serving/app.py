"""A service that scores the features of a user.

The tables are mapped, so all workers share one copy of them. The environment names the folder:

    MODEL=model OMP_NUM_THREADS=1 uvicorn app:create --factory --workers 2 --no-access-log

Each worker watches the folder, and serves a replaced table file a second later.
"""

import asyncio
import contextlib
import itertools
import logging
import os
import time
from pathlib import Path

import numpy as np
from fastapi import FastAPI, HTTPException, Response
from pydantic import StrictInt

import embag

SECONDS_BETWEEN_CHECKS = 1


class Model:
    """A recommender: pooled embeddings, then a small dense network in NumPy."""

    def __init__(self, folder):
        tables = {path.stem: self.load(path) for path in table_files(folder)}
        self.ebc = embag.EmbeddingBagCollection(
            tables, [embag.Feature(name, name) for name in tables], invalid="skip"
        )
        with np.load(folder / "dense.npz") as arrays:
            self.weights = list(arrays.values())

    def load(self, path):
        table = embag.load_table(path, memory="map")
        # Read it once, so that no request waits for the disk.
        (table.packed if isinstance(table, embag.QuantizedTable) else table).max()
        return table

    def replace(self, path):
        self.ebc.replace(path.stem, self.load(path))

    @property
    def n_invalid(self):
        return self.ebc.n_invalid

    def pool(self, features):
        """Look up all features; raise ValueError or TypeError for invalid ones.

        Passing the concatenated ids takes a fifth of the time of passing them by name. If that
        fails, they are passed by name, as the messages then refer to the lists of the user.
        """
        if features.keys() == self.ebc.slices.keys():
            bags = [features[name] for name in self.ebc.slices]
            with contextlib.suppress(OverflowError):
                ids = np.fromiter(itertools.chain.from_iterable(bags), np.int64)
                return self.ebc(ids, np.cumsum([0, *map(len, bags)]))
        return self.ebc({name: [ids] for name, ids in features.items()})

    def dense(self, pooled):
        *hidden, last = self.weights
        for weight in hidden:
            pooled = np.maximum(pooled @ weight, 0)
        return (pooled @ last).item()


def table_files(folder):
    """Return the file of each table, with a stamp that changes when the file is replaced."""
    stamps = {}
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(OSError):  # deleted meanwhile
            status = path.stat()
            stamps[path] = (status.st_ino, status.st_mtime_ns)
    return stamps


async def watch(folder, served, model):
    """Forever replace the tables whose files have changed."""
    while True:
        await asyncio.sleep(SECONDS_BETWEEN_CHECKS)
        for path, stamp in table_files(folder).items() - served.items():
            served[path] = stamp
            try:  # in another thread, as it may wait for the disk
                await asyncio.to_thread(model.replace, path)
            except Exception:  # the next file may be valid
                logging.exception("%s is invalid: the old table is still served", path.name)


def service(make_model, folder, watches=True):
    """Serve a model over HTTP; by default, watch its folder for new tables."""
    served = table_files(folder)  # before loading, so that later changes are noticed
    model = make_model(folder)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        watching = asyncio.create_task(watch(folder, served, model)) if watches else None
        yield
        if watching:
            watching.cancel()

    app = FastAPI(lifespan=lifespan)

    # "async", as a lookup takes microseconds, less than passing it to another thread.
    @app.post("/score")
    async def score(features: dict[str, list[StrictInt]], response: Response) -> dict[str, float]:
        start = time.perf_counter()
        try:
            pooled = model.pool(features)
        except (TypeError, ValueError) as error:
            raise HTTPException(422, str(error)) from error
        middle = time.perf_counter()
        result = model.dense(pooled)
        stop = time.perf_counter()
        # In milliseconds, in the header that browsers' tools and load.py read.
        response.headers["Server-Timing"] = (
            f"lookup;dur={(middle - start) * 1e3:.4f}, dense;dur={(stop - middle) * 1e3:.4f}"
        )
        return {"score": result}

    # Counts of the worker that answers; a monitor must sum those of all processes.
    @app.get("/health")
    async def health() -> dict[str, int | dict[str, int]]:
        return {"process": os.getpid(), "n_invalid": model.n_invalid}

    return app


def create():
    return service(Model, Path(os.environ["MODEL"]))

"""A service on a Ray cluster that scores the features of a user, whose tables are on all nodes.

    python service.py model    # a folder of ../serving/make_tables.py, on all nodes

The collection is made here. The replicas of the service get copies of it, which look up in the same
shards. Requests that wait at the same time are looked up together.
"""

import argparse
import asyncio
import time
from pathlib import Path

import numpy as np
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

import embag
import embag.ray

SECONDS_PER_LOOKUP = 5  # then the answer names the shard
SECONDS_PER_REQUEST = 10  # time in a queue included


@serve.deployment(
    num_replicas=1,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 1, "resources": {"node:__internal_head__": 0.001}},
)
class Scorer:
    """Pooled embeddings, then a small dense network in NumPy."""

    def __init__(self, ebc, dense):
        self.ebc = ebc
        with np.load(dense) as arrays:
            self.weights = list(arrays.values())

    async def __call__(self, request: Request) -> JSONResponse:
        if request.method == "GET":
            return JSONResponse({"n_invalid": self.ebc.n_invalid})
        try:
            user = await request.json()
            self.check(user)
            score, milliseconds = await asyncio.wait_for(self.score(user), SECONDS_PER_REQUEST)
        except (TypeError, ValueError) as error:
            return JSONResponse({"detail": str(error)}, 422)
        except embag.ray.ShardError as error:
            return JSONResponse({"detail": str(error)}, 503)
        except asyncio.TimeoutError:
            detail = f"no answer within {SECONDS_PER_REQUEST} seconds"
            return JSONResponse({"detail": detail}, 503)
        timing = "lookup;dur={:.4f}, dense;dur={:.4f}".format(*milliseconds)
        return JSONResponse({"score": score}, headers={"Server-Timing": timing})

    def check(self, user):
        """Raise unless a user has a list of integers for each feature."""
        if not isinstance(user, dict):
            raise TypeError(f"request must be an object, got {user!r:.50}")
        for name in self.ebc.slices.keys() - user.keys():
            raise ValueError(f"request must have ids for every feature, got none for {name!r}")
        for name, ids in user.items():
            if name not in self.ebc.slices:
                raise ValueError(f"request must have names of features as keys, got {name!r}")
            if not isinstance(ids, list) or not all(type(one) is int for one in ids):
                raise TypeError(f"feature {name!r} must have a list of integers, got {ids!r:.50}")

    @serve.batch(max_batch_size=32, max_concurrent_batches=8, batch_wait_timeout_s=0.001)
    async def score(self, users):
        """Return the score of each user, and the milliseconds of the lookup and of the rest."""
        start = time.perf_counter()
        pooled = await self.ebc.lookup(
            {name: [user[name] for user in users] for name in self.ebc.slices},
            timeout=SECONDS_PER_LOOKUP,
        )
        middle = time.perf_counter()
        *hidden, last = self.weights
        for weight in hidden:
            pooled = np.maximum(pooled @ weight, 0)
        scores = (pooled @ last).ravel().tolist()
        stop = time.perf_counter()
        milliseconds = (middle - start) * 1e3, (stop - middle) * 1e3
        return [(score, milliseconds) for score in scores]


def make_collection(folder, **options):
    """Return the collection of a folder's tables, which stay in their files."""
    tables = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    features = [embag.Feature(name, name) for name in tables]
    return embag.ray.ShardedCollection(tables, features, invalid="skip", **options)


def start(ebc, folder, port):
    """Serve scores at a port of the cluster's first machine, where the replicas are, too."""
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    serve.run(Scorer.bind(ebc, folder / "dense.npz"), route_prefix="/score")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8000)
    args = parser.parse_args()
    ray.init(address="auto")
    with make_collection(args.folder.absolute()) as ebc:
        print(ebc.plan)
        start(ebc, args.folder.absolute(), args.port)
        while True:
            time.sleep(3600)

"""The soak's service with faults: wrong counts, wrong scores and errors."""

import os
from pathlib import Path

import app


class Model(app.Model):
    n_invalid = property(lambda self: {"feature_00": 1000})

    def dense(self, pooled):
        if pooled[0, 0] > 1:
            raise KeyError("planted")
        return super().dense(pooled) + (pooled[0, 0] < -1)


def create():
    return app.service(Model, Path(os.environ["MODEL"]))

"""The soak's service with a fault: it never replaces its tables."""

import os
from pathlib import Path

import app


class Model(app.Model):
    def replace(self, path):
        pass


def create():
    return app.service(Model, Path(os.environ["MODEL"]))

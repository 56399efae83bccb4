"""The same service with torch and the same files, for comparison.

MODEL=model OMP_NUM_THREADS=1 uvicorn app_torch:create --factory --no-access-log
"""

import os
from pathlib import Path

import numpy as np
import torch
from app import service, table_files
from safetensors.torch import load_file


class TorchModel:
    def __init__(self, folder):
        self.tables = {path.stem: self.load(path) for path in table_files(folder)}
        self.n_invalid = dict.fromkeys(self.tables, 0)
        self.start = torch.tensor([0])
        layers = []
        with np.load(folder / "dense.npz") as arrays:
            for weight in arrays.values():
                linear = torch.nn.Linear(*weight.shape, bias=False)
                linear.weight.data = torch.from_numpy(weight.T.copy())
                layers += [linear, torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers[:-1])

    def load(self, path):
        # load_file maps the file, so workers share its pages, as with embag.
        table = load_file(path)["weight"]
        table.max()
        return table

    def replace(self, path):
        table = self.load(path)
        if table.shape[1] != self.tables[path.stem].shape[1]:
            raise ValueError("it has another number of columns")
        self.tables[path.stem] = table

    @torch.inference_mode()
    def pool(self, features):
        if features.keys() != self.tables.keys():
            raise ValueError("there must be all features and no other")
        try:
            return torch.cat([self.bag(name, features[name]) for name in self.tables], dim=1)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def bag(self, name, ids):
        table, ids = self.tables[name], torch.tensor(ids, dtype=torch.int64)
        try:
            return self.sum(table, ids)
        except RuntimeError:  # torch raises it for ids out of range, which are then removed
            rows = ids[(ids >= 0) & (ids < len(table))]
            self.n_invalid[name] += len(ids) - len(rows)
            return self.sum(table, rows)

    def sum(self, table, ids):
        if table.dtype == torch.uint8:  # embag's rows of 8 bits are torch's
            return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(table, ids, self.start)
        return torch.nn.functional.embedding_bag(ids, table, self.start, mode="sum")

    @torch.inference_mode()
    def dense(self, pooled):
        return self.network(pooled).item()


def create():
    return service(TorchModel, Path(os.environ["MODEL"]))

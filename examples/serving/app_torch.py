"""The same service with torch, over the same files: for comparison.

MODEL=model OMP_NUM_THREADS=1 uvicorn app_torch:create --factory --no-access-log
"""

import os
from pathlib import Path

import numpy as np
import torch
from app import service
from safetensors.torch import load_file


class TorchModel:
    def __init__(self, folder):
        # load_file maps a file: workers share its pages, as those of embag's tables.
        self.tables = {
            path.stem: load_file(path)["weight"] for path in sorted(folder.glob("*.safetensors"))
        }
        for table in self.tables.values():
            table.max()
        self.start = torch.tensor([0])
        layers = []
        with np.load(folder / "dense.npz") as arrays:
            for weight in arrays.values():
                linear = torch.nn.Linear(*weight.shape, bias=False)
                linear.weight.data = torch.from_numpy(weight.T.copy())
                layers += [linear, torch.nn.ReLU()]
        self.network = torch.nn.Sequential(*layers[:-1])

    @torch.inference_mode()
    def pool(self, features):
        if features.keys() != self.tables.keys():
            raise ValueError("there must be all features and no other")
        try:
            return torch.cat(
                [self.bag(table, features[name]) for name, table in self.tables.items()], dim=1
            )
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def bag(self, table, ids):
        ids = torch.tensor(ids, dtype=torch.int64)
        if table.dtype == torch.uint8:  # embag's rows of 8 bits are torch's
            return torch.ops.quantized.embedding_bag_byte_rowwise_offsets(table, ids, self.start)
        return torch.nn.functional.embedding_bag(ids, table, self.start, mode="sum")

    @torch.inference_mode()
    def dense(self, pooled):
        return self.network(pooled).item()


def create():
    return service(TorchModel(Path(os.environ["MODEL"])))

"""The contenders: a class for each, by the kind of workload.

base.py          what all contenders have in common
search.py        the search for the fastest of several strategies
embag.py         embag: as users have it, and with the best of its prefetch strategies pinned
limit.py         the gather limit
update_limit.py  the limit of training steps
torch.py         torch
zentorch.py      AMD's plugin for torch
fbgemm.py        FBGEMM
others.py        numba, SciPy and NumPy
"""

from benchmarks.operations.contenders.base import Contender
from benchmarks.operations.contenders.embag import (
    Embag,
    EmbagBackward,
    EmbagCollection,
    EmbagGather,
    EmbagGatherOut,
    EmbagMatrix,
    EmbagNumpy,
    EmbagNumpyMatrix,
    EmbagOneThread,
    EmbagPinned,
    EmbagPinnedCollection,
    EmbagPinnedGather,
    EmbagPinnedGatherOut,
    EmbagPinnedMatrix,
    EmbagQuantize,
    EmbagStep,
    EmbagTrain,
    EmbagTrainCollection,
    EmbagTwoCalls,
    EmbagUpdate,
)
from benchmarks.operations.contenders.fbgemm import Fbgemm, FbgemmTrain
from benchmarks.operations.contenders.limit import Limit, LimitNumpy
from benchmarks.operations.contenders.others import (
    Numba,
    Numpy,
    NumpyGather,
    NumpyGatherOut,
    Scipy,
    ScipyMatrix,
)
from benchmarks.operations.contenders.torch import (
    Torch,
    TorchBackward,
    TorchCollection,
    TorchGather,
    TorchGatherOut,
    TorchQuantize,
    TorchQuantized,
    TorchStep,
    TorchUncoalesced,
    TorchUpdate,
)
from benchmarks.operations.contenders.update_limit import UpdateLimit
from benchmarks.operations.contenders.zentorch import (
    Zentorch,
    ZentorchCollection,
    ZentorchGather,
    ZentorchQuantized,
)

# "embag-again" is embag once more: the ratio of the two shows the noise of a run.
CONTENDERS: dict[str, dict[str, type[Contender]]] = {
    "forward": {
        "torch": Torch,
        "zentorch": Zentorch,
        "embag": Embag,
        "embag-again": Embag,
        "embag-pinned": EmbagPinned,
        "limit": Limit,
        "embag-numpy": EmbagNumpy,
        "limit-numpy": LimitNumpy,
        "numba": Numba,
        "scipy": Scipy,
        "numpy": Numpy,
    },
    "backward": {
        "torch": TorchBackward,
        "torch-uncoalesced": TorchUncoalesced,
        "embag": EmbagBackward,
        "embag-again": EmbagBackward,
    },
    "step": {
        "torch": TorchStep,
        "embag": EmbagStep,
        "embag-again": EmbagStep,
    },
    "quantized": {
        "torch": TorchQuantized,
        "zentorch": ZentorchQuantized,
        "embag": Embag,
        "embag-again": Embag,
        "embag-pinned": EmbagPinned,
        "limit": Limit,
    },
    "collection": {
        "fbgemm": Fbgemm,
        "torch": TorchCollection,
        "zentorch": ZentorchCollection,
        "embag": EmbagCollection,
        "embag-again": EmbagCollection,
        "embag-pinned": EmbagPinnedCollection,
        "limit": Limit,
    },
    "gather": {
        "torch": TorchGather,
        "zentorch": ZentorchGather,
        "embag": EmbagGather,
        "embag-again": EmbagGather,
        "embag-pinned": EmbagPinnedGather,
        "numpy": NumpyGather,
    },
    "gather-out": {
        "torch": TorchGatherOut,
        "embag": EmbagGatherOut,
        "embag-again": EmbagGatherOut,
        "embag-pinned": EmbagPinnedGatherOut,
        "numpy": NumpyGatherOut,
    },
    "quantize": {
        "torch": TorchQuantize,
        "embag": EmbagQuantize,
        "embag-again": EmbagQuantize,
    },
    "update": {
        "torch": TorchUpdate,
        "one-thread": EmbagOneThread,
        "two-calls": EmbagTwoCalls,
        "embag": EmbagUpdate,
        "embag-again": EmbagUpdate,
        "limit": UpdateLimit,
    },
    "train": {
        "fbgemm": FbgemmTrain,
        "embag": EmbagTrain,
        "embag-again": EmbagTrain,
    },
    "train-collection": {
        "fbgemm": FbgemmTrain,
        "embag": EmbagTrainCollection,
        "embag-again": EmbagTrainCollection,
    },
    "matrix": {
        "scipy": ScipyMatrix,
        "embag": EmbagMatrix,
        "embag-again": EmbagMatrix,
        "embag-pinned": EmbagPinnedMatrix,
        "limit": Limit,
        "embag-numpy": EmbagNumpyMatrix,
        "limit-numpy": LimitNumpy,
    },
}
# By name alone, for properties that do not depend on the workload.
ALL = {name: contender for kind in CONTENDERS.values() for name, contender in kind.items()}

"""The kernels, as `_dispatch.py` loads them. What each does is told in the *.pxi files."""

from typing import Any

from numpy.typing import NDArray

FLOAT_ENCODINGS: tuple[int, int, int, int]
QUANTIZED_ENCODINGS: dict[tuple[str, int], int]

def is_table(array: object) -> bool: ...
def is_index_array(array: object) -> bool: ...
def is_output(
    array: object, weight: NDArray[Any], n_bags: int, inputs: tuple[object, ...]
) -> bool: ...
def count_bags(
    input: NDArray[Any], offsets: NDArray[Any] | None, include_last_offset: bool
) -> int: ...
def empty_output(n_bags: int, weight: NDArray[Any]) -> NDArray[Any]: ...
def embedding_bag(
    n_threads: int,
    weight: NDArray[Any],
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: int,
    per_sample_weights: NDArray[Any] | None,
    mode: str,
    padding: int,
    n_invalid: NDArray[Any] | None,
    out: NDArray[Any],
    max_indices: NDArray[Any] | None,
    out_rows: NDArray[Any] | None = None,
    encoding: int = -1,
    dim: int = -1,
    out_encoding: int = -1,
) -> bool: ...
def embedding_bags(
    n_threads: int,
    weight: NDArray[Any],
    inputs: tuple[NDArray[Any], ...],
    offsets: tuple[NDArray[Any] | None, ...],
    include_last_offset: int,
    per_sample_weights: tuple[NDArray[Any] | None, ...],
    mode: str,
    padding: int,
    n_invalid: NDArray[Any] | None,
    out: NDArray[Any],
    max_indices: None,
    out_rows: None = None,
    encoding: int = -1,
    dim: int = -1,
    out_encoding: int = -1,
) -> bool: ...

class Collection:
    n_features: int
    n_columns: int
    def __init__(
        self,
        features: tuple[tuple[Any, ...], ...],
        memory: tuple[NDArray[Any], ...],
        n_invalid: NDArray[Any] | None,
    ) -> None: ...
    def pool(
        self,
        n_threads: int,
        values: object,
        offsets: object,
        per_sample_weights: object,
        out: object,
    ) -> NDArray[Any] | None: ...
    def gather_named(
        self, values: dict[str, object], names: tuple[str, ...]
    ) -> (
        tuple[int, tuple[NDArray[Any], ...], tuple[NDArray[Any] | None, ...], NDArray[Any]] | None
    ): ...
    def pool_each(
        self,
        n_threads: int,
        inputs: tuple[NDArray[Any], ...],
        offsets: tuple[NDArray[Any] | None, ...],
        include_last_offset: bool,
        per_sample_weights: tuple[NDArray[Any] | None, ...],
        out: NDArray[Any],
    ) -> bool: ...

def first_bad_offset(offsets: NDArray[Any], n_indices: int) -> int: ...
def first_bad_index(input: NDArray[Any], n_rows: int) -> int: ...
def renorm(
    n_threads: int,
    weight: NDArray[Any],
    rows: NDArray[Any],
    max_norm: float,
    norm_type: float,
) -> None: ...
def group_by_row(
    n_threads: int,
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: bool,
    by_bag: bool,
    n_positions: int,
    n_rows: int,
    padding: int,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None: ...
def look_up_weights(
    n_threads: int,
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: bool,
    per_sample_weights: NDArray[Any],
    positions: NDArray[Any],
    n_positions: int,
) -> NDArray[Any] | None: ...
def divide_by_sizes(
    n_threads: int,
    grad: NDArray[Any],
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: bool,
    padding: int,
    out: NDArray[Any],
) -> bool: ...
def scatter(
    n_threads: int,
    grad: NDArray[Any],
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: bool,
    per_sample_weights: NDArray[Any] | None,
    padding: int,
    out: NDArray[Any],
) -> bool: ...
def scatter_max(
    n_threads: int,
    grad: NDArray[Any],
    max_indices: NDArray[Any],
    padding: int,
    out: NDArray[Any],
) -> bool: ...
def dot_rows(
    n_threads: int,
    weight: NDArray[Any],
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: bool,
    grad: NDArray[Any],
    n_positions: int,
    padding: int,
    out: NDArray[Any],
) -> bool: ...
def add_rows(
    n_threads: int,
    weight: NDArray[Any],
    rows: NDArray[Any],
    values: NDArray[Any],
    alpha: float,
) -> bool: ...
def quantize(
    n_threads: int,
    weight: NDArray[Any],
    bits: int,
    out: NDArray[Any],
) -> bool: ...
def first_bad_row(weight: NDArray[Any], bits: int) -> int: ...
def build_info() -> tuple[str, int]: ...
def cpu_level() -> int: ...

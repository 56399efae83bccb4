"""The kernels, as `_dispatch.py` loads them. What each does is told in _core.pyx."""

from typing import Any

from numpy.typing import NDArray

def is_table(array: object) -> bool: ...
def is_index_array(array: object) -> bool: ...
def is_output(
    array: object, weight: NDArray[Any], n_bags: int, inputs: tuple[object, ...]
) -> bool: ...
def embedding_bag(
    weight: NDArray[Any],
    input: NDArray[Any],
    offsets: NDArray[Any] | None,
    include_last_offset: bool,
    per_sample_weights: NDArray[Any] | None,
    mode: str,
    padding: int,
    n_threads: int,
    out: NDArray[Any],
    max_indices: NDArray[Any] | None,
) -> bool: ...
def first_bad_offset(offsets: NDArray[Any], n_indices: int) -> int: ...
def first_bad_index(input: NDArray[Any], n_rows: int) -> int: ...
def renorm(
    weight: NDArray[Any], rows: NDArray[Any], max_norm: float, norm_type: float, n_threads: int
) -> bool: ...
def build_info() -> tuple[str, int]: ...
def cpu_level() -> int: ...

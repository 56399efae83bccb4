"""The kernels, as `_kernels/dispatch.py` loads them. Made by tools/stubs.py."""

from typing import Any

from numpy.typing import NDArray

DIVIDED_SUM: int
ENCODING_CODES: dict[Any, int]
MODE_CODES: dict[Any, int]
OPERATION_NAMES: dict[Any, int]
PART: int
PHASE_NAMES: dict[Any, int]
RULES: dict[Any, int]
WAYS: dict[Any, int]

def add_rows(
    n_threads: int,
    weight: NDArray[Any],
    rows: NDArray[Any],
    values: NDArray[Any],
    alpha: float,
) -> bool: ...
def are_apart(changed: tuple[Any, ...], read: tuple[Any, ...]) -> bool: ...
def build_info() -> Any: ...
def candidate_budgets() -> Any: ...
def candidate_strategies() -> Any: ...
def count_bags(input: NDArray[Any], offsets: Any, include_last_offset: bool) -> int: ...
def count_scratch(n_positions: int, weighted: bool, n_threads: int) -> int: ...
def cpu_level() -> int: ...
def divide_by_divisors(
    n_threads: int,
    grad: NDArray[Any],
    input: NDArray[Any],
    offsets: Any,
    include_last_offset: bool,
    per_sample_weights: Any,
    mode: int,
    padding: int,
    out: NDArray[Any],
    divisors: NDArray[Any],
) -> bool: ...
def dot_rows(
    n_threads: int,
    weight: NDArray[Any],
    input: NDArray[Any],
    offsets: Any,
    include_last_offset: bool,
    grad: NDArray[Any],
    n_positions: int,
    padding: int,
    out: NDArray[Any],
) -> bool: ...
def encoding_traits(encoding: int) -> Any: ...
def first_bad_index(input: NDArray[Any], n_rows: int, first_id: int = 0) -> int: ...
def first_bad_offset(offsets: NDArray[Any], n_indices: int) -> int: ...
def first_bad_row(weight: NDArray[Any], bits: int) -> int: ...
def forget_strategies(key: Any = None) -> Any: ...
def gather(
    n_threads: int,
    rows: NDArray[Any],
    encoding: int,
    dim: int,
    input: NDArray[Any],
    out: NDArray[Any],
    out_encoding: int,
    n_invalid: Any,
    stand_in: int = -1,
    normalizes: bool = False,
    mapping: Any = None,
    row_scales: Any = None,
) -> bool: ...
def group_by_row(
    n_threads: int,
    input: NDArray[Any],
    offsets: Any,
    include_last_offset: bool,
    by_bag: bool,
    n_positions: int,
    n_rows: int,
    padding: int,
) -> Any: ...
def ids_of_lists(lists: Any, include_last_offset: bool = True) -> Any: ...
def is_encoded_table(table: NDArray[Any], encoding: int, dim: int) -> bool: ...
def is_index_array(array: Any) -> bool: ...
def is_table(array: Any) -> bool: ...
def look_up_weights(
    n_threads: int,
    input: NDArray[Any],
    offsets: Any,
    include_last_offset: bool,
    per_sample_weights: NDArray[Any],
    positions: NDArray[Any],
    n_positions: int,
) -> Any: ...
def mode_traits(mode: int) -> Any: ...
def paged_tables() -> Any: ...
def pin_pages(pinned: bool) -> Any: ...
def pin_strategy(strategy: Any) -> Any: ...
def plain_call(
    runs_alone: Any,
    entries_per_thread: int,
    input: Any,
    weight: Any,
    offsets: Any,
    max_norm: Any,
    norm_type: Any,
    scale_grad_by_freq: Any,
    mode: Any,
    sparse: Any,
    per_sample_weights: Any,
    include_last_offset: Any,
    padding_idx: Any,
    lengths: Any,
    out: Any,
    return_max_indices: Any,
    num_threads: Any,
    out_dtype: Any,
    invalid: Any,
    return_n_invalid: Any,
    default_idx: Any,
    return_n_valid: Any,
    normalize: Any,
) -> Any: ...
def plain_gather(
    runs_alone: Any,
    entries_per_thread: int,
    input: Any,
    weight: Any,
    padding_idx: Any,
    max_norm: Any,
    norm_type: Any,
    out: Any,
    out_dtype: Any,
    invalid: Any,
    num_threads: Any,
) -> Any: ...
def prefetch_pages_above(n_bytes: float) -> Any: ...
def quantize(n_threads: int, weight: NDArray[Any], bits: int, out: NDArray[Any]) -> bool: ...
def reduce_bags(
    n_threads: int,
    rows: NDArray[Any],
    encoding: int,
    dim: int,
    inputs: tuple[Any, ...],
    offsets: tuple[Any, ...],
    include_last_offset: int,
    per_sample_weights: tuple[Any, ...],
    mode: int,
    padding: int,
    n_invalid: Any,
    out: NDArray[Any],
    out_encoding: int,
    max_indices: Any = None,
    out_rows: Any = None,
    stand_in: int = -1,
    default_row: int = -1,
    normalizes: bool = False,
    n_valid: Any = None,
    mapping: Any = None,
    row_scales: Any = None,
) -> bool: ...
def renorm(
    n_threads: int,
    weight: NDArray[Any],
    rows: NDArray[Any],
    max_norm: float,
    norm_type: float,
) -> Any: ...
def row_bytes(encoding: int, dim: int) -> int: ...
def scatter(
    n_threads: int,
    grad: NDArray[Any],
    input: NDArray[Any],
    offsets: Any,
    include_last_offset: bool,
    per_sample_weights: Any,
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
def scribble_choices(noise: bytes) -> Any: ...
def simulate_choice(cost: Any, n_pieces: int, far: bool = True, n_threads: int = 1) -> Any: ...
def simulate_pages(cost: Any, n_pieces: int, most: int) -> Any: ...
def step_tables(
    n_threads: int,
    progress: tuple[Any, ...],
    optimizers: tuple[Any, ...],
    gradients: tuple[Any, ...],
) -> bool: ...
def strategy_choices() -> Any: ...
def strategy_class(
    encoding: int,
    mode: int,
    weighted: bool,
    dim: int,
    n_rows: int,
    several: bool,
) -> int: ...
def take_region() -> Any: ...

class Collection:
    def __init__(self, *arguments: Any) -> None: ...
    def gather_named(
        self,
        values: dict[Any, Any],
        per_sample_weights: Any,
        names: tuple[Any, ...],
        include_last_offset: Any,
    ) -> Any: ...
    n_columns: int
    n_features: int
    def pool(
        self,
        n_threads: int,
        values: Any,
        offsets: Any,
        per_sample_weights: Any,
        out: Any,
    ) -> Any: ...
    def pool_each(
        self,
        n_threads: int,
        inputs: tuple[Any, ...],
        offsets: tuple[Any, ...],
        include_last_offset: int,
        per_sample_weights: tuple[Any, ...],
        out: NDArray[Any],
        n_valid: Any = None,
    ) -> bool: ...

class Progress:
    def __init__(self, *arguments: Any) -> None: ...
    n_steps: int

class Turn:
    def __init__(self, *arguments: Any) -> None: ...

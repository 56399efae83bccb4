"""`PerformanceWarning`: for which tables, how often, and at which line."""

import inspect
import tracemalloc
import warnings

import numpy as np
import pytest

import embag

DIM = 64
N_ROWS = (1 << 20) // (4 * DIM)  # of float32 in 1 MiB
IDS = np.array([[0, 1]])
COPIED = embag.PerformanceWarning


def fortran(n_rows=N_ROWS + 1, dtype=np.float32):
    return np.ones((n_rows, DIM), dtype, order="F")


def spaced():
    return np.ones((N_ROWS + 1, 2 * DIM), np.float32)[:, ::2]


def misaligned():
    table = np.ones((N_ROWS + 1, DIM), np.float32)
    memory = np.zeros(table.nbytes + 1, np.uint8)
    view = memory[1:].view(np.float32).reshape(table.shape)
    view[...] = table
    return view


def chunks():
    pa = pytest.importorskip("pyarrow")
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(N_ROWS * DIM, np.float32)), DIM)
    return pa.chunked_array([column, column])


def frame():
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(np.ones((N_ROWS + 1, DIM), np.float32))


MB = f"{(N_ROWS + 1) * DIM * 4 / 1e6:.0f} MB"
REMEDY = "pass embag.aligned_copy(weight)"
SPREAD = f"weight is copied at each call ({MB}), as the entries of its rows are not adjacent: "


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (fortran, SPREAD + REMEDY),
        (spaced, SPREAD + REMEDY),
        (frame, SPREAD + REMEDY),
        (
            misaligned,
            f"weight is copied at each call ({MB}), as it is not aligned: {REMEDY}",
        ),
        (chunks, f"weight is copied at each call (2 MB), as it has 2 chunks: {REMEDY}"),
    ],
)
def test_the_message_has_the_reason_and_the_remedy(make, message):
    table = make()
    with pytest.warns(COPIED) as caught:
        embag.embedding_bag(IDS, table)
    assert [str(w.message) for w in caught] == [message]
    remedied = embag.aligned_copy(table)
    assert (embag.embedding_bag(IDS, remedied) == 1).all()  # without a warning


def test_small_tables_and_tables_read_in_place_are_not_warned_of():
    embag.embedding_bag(IDS, fortran(N_ROWS))
    embag.embedding_bag(IDS, np.ones((4 * N_ROWS, DIM), np.float32)[::2, : DIM // 2])
    embag.embedding_bag(np.zeros((1, 1), int), np.ones((1 << 19, 1), np.float32, order="F"))


def test_collections_and_functions_that_copy_once_do_not_warn(tmp_path):
    table = fortran()
    ebc = embag.EmbeddingBagCollection({"t": table}, [embag.Feature("f", "t")])
    ebc.replace("t", chunks())
    embag.quantize(table)
    embag.save_table(tmp_path / "table.npy", table)
    embag.tune(table, n_threads=1)


GRAD = np.ones((1, DIM))
LAYER = embag.EmbeddingBag.from_pretrained(fortran(dtype=np.float64))
CALLS = {
    "embedding_bag": lambda table: embag.embedding_bag(IDS, table),
    "ragged": lambda table: embag.embedding_bag([[0, 1], [2]], table),
    "max_norm": lambda table: embag.embedding_bag(IDS, table, max_norm=1e9),
    "max_indices": lambda table: embag.embedding_bag(
        IDS, table, mode="max", return_max_indices=True
    ),
    "embedding": lambda table: embag.embedding(IDS, table),
    "embedding with max_norm": lambda table: embag.embedding(IDS, table, max_norm=1e9),
    "gradient of weights": lambda table: embag.embedding_bag_backward(
        GRAD, IDS, table, per_sample_weights=[[1, 2]]
    ),
    "gradient of max": lambda table: embag.embedding_bag_backward(GRAD, IDS, table, mode="max"),
    "gradient of norms": lambda table: embag.embedding_bag_backward(
        GRAD, IDS, table, normalize=True
    ),
    "layer": lambda table: LAYER(IDS),
    "backward of a layer": lambda table: LAYER.backward(GRAD, IDS, per_sample_weights=[[1, 2]]),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_warning_names_the_line_of_the_user(call):
    table = fortran()
    with pytest.warns(COPIED) as caught:
        call(table)
    assert [w.filename for w in caught] == [__file__]
    lines, first = inspect.getsourcelines(call)
    assert first <= caught[0].lineno < first + len(lines)


def test_a_gradient_that_reads_no_values_copies_nothing():
    embag.embedding_bag_backward(GRAD, IDS, fortran())
    LAYER.backward(GRAD, IDS)


def test_each_line_is_warned_of_once():
    table = fortran()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            embag.embedding_bag(IDS, table)
            embag.embedding(IDS, table)
    assert len(caught) == 2
    assert caught[0].lineno + 1 == caught[1].lineno


def test_an_embedding_copies_the_table_once():
    table = fortran(8 * N_ROWS)
    tracemalloc.start()
    with pytest.warns(COPIED):
        embag.embedding(IDS, table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert table.nbytes <= peak < 1.5 * table.nbytes


def test_an_error_leaves_the_result_unwritten():
    out = np.full((1, DIM), 7, np.float32)
    with pytest.raises(COPIED):
        embag.embedding_bag(IDS, fortran(), out=out)
    assert (out == 7).all()


def test_a_subclass_of_the_layer_is_the_users():
    class Mine(embag.EmbeddingBag):
        def forward(self, *arguments, **options):
            return super().forward(*arguments, **options)

    layer = Mine.from_pretrained(fortran())
    with pytest.warns(COPIED) as caught:
        layer(IDS)
    assert caught[0].filename == __file__

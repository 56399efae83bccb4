"""The examples of pipelines: each pools its sample and checks the bits of the result."""

import re
from pathlib import Path

import pytest
from processes import run_python

FOLDER = Path(__file__).parents[2] / "examples" / "pipelines"
NEEDS = {
    "pandas": ["pandas"],
    "polars": ["polars"],
    "duckdb": ["duckdb"],
    "duckdb_udf": ["duckdb"],
    "dask": ["dask.dataframe"],
    "spark": ["pyspark"],
    "ray": ["ray"],
}


MARKS = {"spark": pytest.mark.pipelines, "ray": pytest.mark.ray}


def script(name):
    """Return the path of an example, if its engine is installed."""
    for package in ("nanoarrow", "pyarrow", *NEEDS[name]):
        pytest.importorskip(package)
    return FOLDER / f"with_{name}.py"


GALLERY = Path(__file__).parents[2] / "docs" / "gallery.md"
LAST_LINE = "1000 rows, equal to those of plain arrays"


def test_the_gallery_quotes_the_last_lines():
    lines = re.findall(r"^with_(\w+)\.py: (.*)$", GALLERY.read_text("utf-8"), re.MULTILINE)
    assert lines
    assert set(lines) <= {(name, LAST_LINE) for name in NEEDS}


def test_every_example_is_run():
    assert {path.stem for path in FOLDER.glob("with_*.py")} == {f"with_{name}" for name in NEEDS}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=MARKS.get(name, ())) for name in NEEDS],
)
def test_the_sample(name):
    process = run_python(script(name), timeout=180)
    assert process.stdout.splitlines()[-1].endswith(f"with_{name}.py: {LAST_LINE}")


def test_files_given_as_arguments(tmp_path):
    pq = pytest.importorskip("pyarrow.parquet")
    make = "import sample, sys; sample.make(*sys.argv[1:])"
    files = [tmp_path / "events.parquet", tmp_path / "items.npy", tmp_path / "vectors.parquet"]
    example = script("polars")
    run_python("-c", make, *files[:2], cwd=FOLDER)
    run_python(example, *files)
    assert pq.read_metadata(files[2]).num_rows == 1000

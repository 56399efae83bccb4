"""The examples of the documents run, their figures are generated, and their links exist."""

import doctest
import re
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).parents[2]
PAGES = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "*/*.md", "examples/*/*.md")
    for page in ROOT.glob(pattern)
]


@pytest.mark.parametrize(
    ("name", "n_examples"),
    [
        ("README.md", 10),
        ("docs/tables.md", 8),
        ("docs/collections.md", 20),
        ("docs/training.md", 9),
        ("docs/serving.md", 2),
        ("docs/columns.md", 17),
        ("docs/ids.md", 35),
        ("docs/frames.md", 22),
        ("docs/recipes.md", 20),
    ],
)
def test_examples(name, n_examples):
    if name == "docs/ids.md":
        pytest.importorskip("tokenizers")
    failures, tried = doctest.testfile(str(ROOT / name), module_relative=False)
    assert tried >= n_examples
    assert failures == 0


@pytest.mark.parametrize(
    "command",
    [
        ["benchmarks.operations.table"],
        ["benchmarks.picture"],
        ["benchmarks.charts"],
        ["tools.soak.page", "benchmarks/results/soak.json", "docs/soak.md"],
        ["benchmarks.pages.table", "benchmarks/results/pages.json", "docs/tables.md"],
        ["benchmarks.sharded.table", "benchmarks/results/sharded.json", "docs/scaling.md"],
    ],
)
def test_figures_are_generated(command):
    run_python("-m", *command, "--check", cwd=ROOT)


def anchors(page):
    """Return the anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", PAGES)
def test_links_exist(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    folders = "benchmarks|docs|embag|examples|tests|tools|_kernels|_columns|_files|_process"
    for path in re.findall(rf"`((?:{folders})/[\w/.-]+\.\w+)`", (ROOT / name).read_text()):
        in_wheels = path.endswith(".dylib")
        assert in_wheels or (ROOT / path).exists() or (ROOT / "embag" / path).exists(), path


def test_functions_on_the_routes_of_arguments_exist():
    page = (ROOT / "docs" / "design.md").read_text()
    section = page.partition("## How an argument travels")[2].partition("\n## ")[0]
    sources = [
        *(ROOT / "embag").glob("*.py"),
        *(ROOT / "embag").glob("_*/*.py"),
        *(ROOT / "embag").glob("_*/*.pxi"),
    ]
    code = "\n".join(source.read_text() for source in sources)
    for name in re.findall(r"`(?:\w+\.)?(\w+)`", section):
        if name not in {"py", "pxi"}:  # of a file
            assert re.search(rf"\b{name}\b", code), name

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
    if not page.relative_to(ROOT).parts[0].startswith(".")
]
EXAMPLE = re.compile(r"^>>> ", re.MULTILINE)


def text_of(name):
    return (ROOT / name).read_text("utf-8")


@pytest.mark.parametrize("name", [page for page in PAGES if EXAMPLE.search(text_of(page))])
def test_examples(name):
    text = text_of(name)
    for package in re.findall(r"^>>> (?:import|from) (\w+)", text, flags=re.MULTILINE):
        pytest.importorskip(package)
    failures, tried = doctest.testfile(str(ROOT / name), module_relative=False)
    assert tried == len(EXAMPLE.findall(text))
    assert failures == 0


@pytest.mark.parametrize(
    "command",
    [
        ["benchmarks.operations.table"],
        ["benchmarks.picture"],
        ["benchmarks.speed_charts"],
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


# The site


def entries(name):
    """Return the entries of the toctrees of a page, as names of pages without suffixes."""
    trees = re.findall(r"^```{toctree}\n(.*?)^```", text_of(name), re.MULTILINE | re.DOTALL)
    lines = [line for tree in trees for line in tree.splitlines() if line and line[0] != ":"]
    lines = [re.sub(r"^.* <(.*)>$", r"\1", line) for line in lines]  # with a title
    folder = (ROOT / name).parent
    return {str((folder / line).resolve().relative_to(ROOT)) for line in lines}


def test_every_page_is_in_the_site():
    in_trees = set().union(*map(entries, PAGES)) | {"docs/index"}
    pages = {page.removesuffix(".md") for page in PAGES} | {"docs/reference"}
    assert in_trees == pages


def public_names():
    """Yield every public name of embag and its modules, without importing extras."""
    patterns = ("*.py", "*/__init__.py", "torch/optim.py")
    for path in (path for pattern in patterns for path in (ROOT / "embag").glob(pattern)):
        found = re.search(
            r"^__all__ = \[(.*?)\]", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        module = module.removesuffix(".__init__").removeprefix("embag").lstrip(".")
        if found and not module.startswith("_"):
            for name in re.findall(r'"(\w+)"', found[1]):
                yield f"{module}.{name}".lstrip(".")


def test_the_reference_has_every_public_name():
    listed = set(re.findall(r"^   ([\w.]+)$", text_of("docs/reference.rst"), re.MULTILINE))
    names = set(public_names()) - {"__version__", "optim", "torch.optim"}
    assert len(names) > 50
    assert listed == names


def test_the_gallery_quotes_output():
    """Text blocks are on the pages of the examples; other output is tested with the examples."""
    pages = [text_of(page) for page in PAGES if page.startswith("examples/")]
    for block in re.findall(r"^```text\n(.*?)^```", text_of("docs/gallery.md"), re.M | re.S):
        assert any(block in page for page in pages)
    for row in re.findall(r"^\|.*\|$", text_of("docs/gallery.md"), re.MULTILINE):
        assert any(row in page for page in pages)

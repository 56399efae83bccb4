"""The documents' examples run, and the README's table is the one that was measured."""

import doctest
import re
from pathlib import Path

import pytest
from processes import run_python

ROOT = Path(__file__).parent.parent
PAGES = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "*/*.md", "examples/*/*.md")
    for page in ROOT.glob(pattern)
]


@pytest.mark.parametrize(
    ("name", "n_examples"),
    [
        ("README.md", 5),
        ("docs/tables.md", 5),
        ("docs/serving.md", 2),
        ("docs/columns.md", 10),
        ("docs/frames.md", 15),
    ],
)
def test_examples(name, n_examples):
    failures, tried = doctest.testfile(str(ROOT / name), module_relative=False)
    assert tried >= n_examples
    assert failures == 0


@pytest.mark.parametrize(
    ("module", "name", "page"),
    [
        ("benchmarks.table", "readme", "README.md"),
        ("benchmarks.table", "gradients", "README.md"),
        ("benchmarks.table", "inference", "README.md"),
        ("benchmarks.soak.page", "soak", "docs/soak.md"),
    ],
)
def test_figures_are_generated(module, name, page):
    results = f"benchmarks/results/{name}.json"
    run_python("-m", module, results, page, "--check", cwd=ROOT)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target

"""The site: `make docs` builds it from these pages, the README files and the docstrings.

The source folder is the root of the repository, so that relative links between pages work on
GitHub and on the site. Links to other files of the repository become downloads.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from sphinx.ext.autodoc.mock import _MockObject  # noqa: E402

import embag  # noqa: E402

# Annotations such as `Tensor | None` work with mocks.
_MockObject.__or__ = _MockObject.__ror__ = lambda self, other: self
# And the signature of a class with a mocked base is that of its `__init__`.
del _MockObject.__new__

project = "embag"
author = "The embag developers"
copyright = author
version = release = embag.__version__
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/*/README.md",
    "benchmarks/README.md",
    "licenses/README.md",
    "*.md",
]
exclude_patterns = ["build", "dist", ".*", "docs/_*", "**/__pycache__"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_design",
    "sphinx_copybutton",
]

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 4  # with GitHub's names
highlight_language = "none"  # for indented blocks, which are commands and messages
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Signatures name arguments and defaults; the types are in the section "Parameters".
autodoc_typehints = "none"
autodoc_mock_imports = ["torch", "ray"]  # large, and only their names are needed
autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "undoc-members": False,
}
add_module_names = False
toc_object_entries_show_parents = "hide"
numpydoc_show_class_members = False  # the template has them
default_role = "py:obj"  # of names in single backquotes, in docstrings
templates_path = [str(ROOT / "docs" / "_templates")]

html_theme = "pydata_sphinx_theme"
html_title = "embag"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # a redirect from the root of the site
html_show_sourcelink = False
html_sidebars = {f"docs/{page}": [] for page in ("get-started", "benchmarks", "design")}
html_theme_options = {
    "logo": {"text": "embag"},
    "header_links_before_dropdown": 5,
    "show_toc_level": 2,
    "navbar_end": ["theme-switcher"],
    # Its tables are wide.
    "secondary_sidebar_items": {"**": ["page-toc"], "docs/benchmarks": []},
    "footer_start": ["copyright"],
    "footer_end": [],
}


def _adapt(app, docname, source):
    """Change what suits GitHub better than the site.

    A link whose text is the name of a page gets the title of the page or section. The last, empty
    line of code blocks, which doctest needs, is removed.
    """
    text = re.sub(r"\[[\w/-]+\.md\]\(", "[](", source[0])
    source[0] = text.replace("\n\n```\n", "\n```\n")


def setup(app):
    """Adapt pages, and the parts that they include."""
    app.connect("source-read", _adapt)
    app.connect("include-read", lambda app, path, docname, source: _adapt(app, docname, source))

"""The documentation's site: `sphinx-build -W -n docs SITE`. Pages are the Markdown files of this folder, which read on their own too.

Formulas are written into the pages as MathML, which browsers draw themselves: no page loads anything from elsewhere.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "site")]  # the checkout's Python, and this site's own directives

from datgan_fast.version import __version__  # noqa: E402

project = "datgan-fast"
author = "the datgan-fast authors"
copyright = "the datgan-fast authors"  # noqa: A001
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_argparse_cli",
    "mathml",
]
exclude_patterns = ["site"]
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(torch|nn|Tensor|collections|pathlib|typing)\b.*")]

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = {"math"}  # GitHub's own fence for formulas
myst_heading_anchors = 4
suppress_warnings = []

default_role = "code"  # docstrings have names between single backticks
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "datgan-fast"
html_math_renderer = "mathml"
html_static_path = ["site/static"]
html_css_files = ["style.css"]
html_copy_source = False
html_show_sphinx = False

"""The site of the documentation: `sphinx-build -W -n docs SITE`. Its pages are the Markdown files here, which read alone too.

No page loads anything from elsewhere: formulas are drawn when the site is built.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "site")]  # the checkout's Python, and what only the site needs

import datgan_fast as dat  # noqa: E402
from datgan_fast.commands import COMMANDS  # noqa: E402

project = "datgan-fast"
author = copyright = "the datgan-fast authors"
release = dat.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_argparse_cli", "drawn_formulas"]
exclude_patterns = ["site"]
nitpicky = True
# Documented elsewhere, or nowhere.
nitpick_ignore_regex = [
    ("py:obj", ".*"),
    ("py:class", r"Tensor|(torch|collections|pathlib)\..*|datgan_fast\..*\.(Config|Logits|Options|RunFolder)"),
]

myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = {"math"}  # GitHub's own fence for formulas
myst_heading_anchors = 4

default_role = "py:obj"  # docstrings have names between single backticks: those that are documented become links
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_param = napoleon_use_rtype = False  # "x_real, x_fake: ..." is one entry

html_theme = "furo"
html_title = "datgan-fast"
html_math_renderer = "drawn"
html_static_path = ["site/static"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_copy_source = False

# Files of the root that are pages here, as links name them.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def to_pages(text: str) -> str:
    """Links to files that the site has as pages lead there; those named by a file are named by its title."""
    text = re.sub(r"\[([\w-]+\.md)\]\((?=[\w/.]*\1)", "[](", text)
    text = re.sub(r"\]\((?:\.\./)*examples/(\w+)\.py\)", r"](examples.md#\1)", text)
    return re.sub(r"\]\((?:\.\./)*(README|CONTRIBUTING|CHANGELOG)\.md", lambda m: f"]({PAGES[m[1] + '.md']}", text)


# Pages of which only the beginning is written: a block for each command, and for each example.
COMMAND = """
```{{sphinx_argparse_cli}}
:module: datgan_fast.{name}
:func: build_parser
:prog: datgan-fast {name}
:title: {name}
:description: {purpose}
:group_title_prefix:
```
"""
EXAMPLE = """
## {name}

```{{literalinclude}} ../examples/{name}.py
:language: python
```
"""
MADE = {
    "commands": [
        COMMAND.format(name=name, purpose=f"{purpose[0].upper()}{purpose[1:]}.") for name, purpose in COMMANDS.items()
    ],
    "examples": [EXAMPLE.format(name=path.stem) for path in sorted((ROOT / "examples").glob("*.py"))],
}


def setup(app: Sphinx) -> None:
    def read(name: str, content: list[str]) -> None:
        content[0] = to_pages(content[0] + "".join(MADE.get(name, ())))

    app.connect("source-read", lambda app, name, content: read(name, content))
    app.connect("include-read", lambda app, path, parent, content: read("", content))

"""Pages made of the templates in templates/: HTML, in which every text is escaped, without scripts or anything from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

KINDS = {".png": "image/png", ".gif": "image/gif"}


def number(value: float) -> str:
    """To five significant digits."""
    return f"{value:.5g}"


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters["number"] = number


def render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(values)


def embedded(path: Path) -> str:
    """A picture's bytes, to stand where its address would."""
    return f"data:{KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"

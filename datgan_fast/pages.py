"""Pages made of the templates in templates/: HTML, in which every text is escaped, without scripts or anything from elsewhere."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

KINDS = {".png": "image/png", ".gif": "image/gif"}


def number(value: float) -> str:
    """To five significant digits."""
    return f"{value:.5g}"


def cell(value: Any) -> str:
    """In a table of Markdown."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def embedded(path: Path) -> str:
    """A picture's bytes, to stand where its address would."""
    return embedded_bytes(path.read_bytes(), path.suffix)


def embedded_bytes(picture: bytes, suffix: str) -> str:
    return f"data:{KINDS[suffix]};base64,{base64.b64encode(picture).decode()}"


def address(path: str) -> str:
    """A relative path as a link has it."""
    return quote(path.replace(os.sep, "/"), errors="surrogateescape")


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=select_autoescape(["html"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters.update(number=number, cell=cell, embedded=embedded)


def render(template: str, **values: Any) -> str:
    return _TEMPLATES.get_template(template).render(values)

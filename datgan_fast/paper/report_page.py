"""A report's blocks (headings, tables, pictures) and their two renderings: Markdown, and an HTML page that is one file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from .. import pages
from .verdicts import CANNOT_TELL, DOES_NOT, HOLDS


@dataclass(frozen=True)
class Heading:
    kind: ClassVar = "heading"
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    kind: ClassVar = "paragraph"
    text: str


@dataclass(frozen=True)
class Table:
    kind: ClassVar = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False  # cells of text, which a narrow screen shows one below the other


@dataclass(frozen=True)
class Picture:
    kind: ClassVar = "picture"
    path: Path
    caption: str


@dataclass(frozen=True)
class Links:
    """To other pages of the report."""

    kind: ClassVar = "links"
    text: str
    pages: Sequence[str]


Block = Heading | Paragraph | Table | Picture | Links


def markdown(blocks: Sequence[Block]) -> str:
    """Pictures are named relative to the report."""

    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    def text(block: Block) -> str:
        match block:
            case Heading():
                return "#" * block.level + " " + block.text
            case Paragraph():
                return block.text
            case Table():
                return "\n".join([row(block.columns), row(["---"] * len(block.columns)), *map(row, block.rows)])
            case Picture():
                return f"![{block.caption}]({block.path.name})\n\n{block.caption}"
            case Links():
                return f"{block.text}: {', '.join(f'[{page}]({page}.md)' for page in block.pages)}"

    return "\n\n".join(map(text, blocks)) + "\n"


def page(blocks: Sequence[Block]) -> str:
    """One HTML page with its pictures in it."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "")
    return pages.render("report.html", title=title, blocks=blocks, verdicts=(HOLDS, DOES_NOT, CANNOT_TELL))

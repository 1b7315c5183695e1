"""A report's blocks (headings, tables, pictures) and their two renderings: Markdown, and an HTML page that is one file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .claims import CANNOT_TELL, DOES_NOT, HOLDS


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    text: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Table:
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: bool = False  # cells of text, which a narrow screen shows one below the other


@dataclass(frozen=True)
class Picture:
    path: Path
    caption: str


Block = Heading | Paragraph | Code | Table | Picture


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
            case Code():
                return f"```sh\n{block.text}\n```"
            case Table():
                return "\n".join([row(block.columns), row(["---"] * len(block.columns)), *map(row, block.rows)])
            case Picture():
                return f"![{block.caption}]({block.path.name})\n\n{block.caption}"

    return "\n\n".join(map(text, blocks)) + "\n"


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 62rem; margin: 0 auto; padding: 1rem; }
h1, h2, h3 { line-height: 1.2; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; min-width: 4rem; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; }
figcaption { color: #555; font-size: 0.85rem; }
pre { background: #f5f5f5; padding: 0.6rem; overflow-x: auto; }
@media (max-width: 40rem) {
  .prose th { display: none; }
  .prose td { display: block; border: none; padding: 0.1rem 0; }
  .prose td:empty { display: none; }
  .prose td::before { content: attr(data-column) " "; color: #777; }
  .prose tr { display: block; border-bottom: 1px solid #ddd; padding: 0.6rem 0; }
}
.holds { color: #fff; background: #2e7d32; } .does-not { color: #fff; background: #b3261e; }
.cannot-tell { color: #222; background: #e0e0e0; }
.holds, .does-not, .cannot-tell { padding: 0 0.4rem; border-radius: 0.3rem; white-space: nowrap; }
"""


def page(blocks: Sequence[Block]) -> str:
    """One HTML page with its pictures in it."""
    title = next((b.text for b in blocks if isinstance(b, Heading)), "")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(map(_element, blocks))
        + "\n</body>\n</html>\n"
    )


def _element(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
        case Paragraph():
            return f"<p>{html.escape(block.text)}</p>"
        case Code():
            return f"<pre>{html.escape(block.text)}</pre>"
        case Table():
            return _table(block)
        case Picture():
            return _picture(block)


def _table(block: Table) -> str:
    header = "<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in block.columns) + "</tr>"
    rows = "\n".join([header, *(_row(block.columns, r) for r in block.rows)])
    kind = "prose" if block.prose else "figures"
    return f'<div class="wide"><table class="{kind}">\n{rows}\n</table></div>'


def _row(columns: Sequence[str], cells: Sequence[str]) -> str:
    labelled = zip(columns, cells, strict=True)
    return "<tr>" + "".join(f'<td data-column="{html.escape(c)}">{_cell(t)}</td>' for c, t in labelled) + "</tr>"


def _cell(text: str) -> str:
    escaped = html.escape(text)
    if text in (HOLDS, DOES_NOT, CANNOT_TELL):
        return f'<span class="{text.replace(" ", "-")}">{escaped}</span>'
    return escaped


def _picture(block: Picture) -> str:
    data = base64.b64encode(block.path.read_bytes()).decode()
    caption = html.escape(block.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}"><figcaption>{caption}</figcaption></figure>'
    )

"""Formulas as SVG, drawn while the site is built (ziamath, with its own font): a page needs no script, font or network."""

from typing import Any
from xml.etree import ElementTree

import ziamath
from docutils import nodes
from sphinx.application import Sphinx

SIZE = 24  # of the drawing; on the page a formula is as large as the text around it


def drawn(tex: str, inline: bool) -> str:
    svg = ziamath.Latex(tex, size=SIZE, color="currentColor", inline=inline).svgxml()
    _, top, width, height = (float(number) / SIZE for number in svg.attrib["viewBox"].split())  # from the baseline
    style = f"width:{width:.3f}em;height:{height:.3f}em;vertical-align:{-top - height:.3f}em"
    svg.attrib.update({"role": "img", "aria-label": " ".join(tex.split()), "style": style})
    return ElementTree.tostring(svg, encoding="unicode")


def inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(f'<span class="formula">{drawn(node.astext(), True)}</span>')
    raise nodes.SkipNode


def block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula">{drawn(node.astext(), False)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    ziamath.config.svg2 = False  # glyphs in place: pages have many formulas, whose symbols would share their names
    ziamath.config.precision = 2
    app.add_html_math_renderer("drawn", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

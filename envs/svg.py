"""Small pieces of SVG that every board shares: one palette and element helpers over `xml.etree`.

Colours are from Okabe and Ito's colour-blind-safe set, or a mid grey. Pictures have no background, so that one file
serves light and dark pages: pieces, lines and letters keep a contrast of 3:1 on white and on black, fills behind them
need not. Shape, never colour alone, tells players apart.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

FIRST = "#0072B2"
SECOND = "#D55E00"
GRID = "#8A8A8A"
CANDIDATE = "#009E73"
LAST_MOVE = "#E69F00"
_NAMESPACE = "http://www.w3.org/2000/svg"
_NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def canvas(width: float, height: float, title: str) -> ET.Element:
    """The root element, `width` by `height` units, with a title for screen readers."""
    attributes = {"xmlns": _NAMESPACE, "role": "img", "font-family": "sans-serif"}
    root = ET.Element("svg", attributes, width=str(width), height=str(height), viewBox=f"0 0 {width} {height}")
    ET.SubElement(root, "title").text = printable(title)
    return root


def shape(parent: ET.Element, tag: str, **attributes: object) -> ET.Element:
    """Adds `<tag ...>`; underscores in names become hyphens, floats are rounded to two places."""
    return ET.SubElement(parent, tag, {key.replace("_", "-"): _number(value) for key, value in attributes.items()})


def label(parent: ET.Element, x: float, y: float, text: str, size: float, **attributes: object) -> None:
    """Adds text centred on (x, y), grey unless `fill` is given."""
    attributes = {"fill": GRID, "text_anchor": "middle", "dominant_baseline": "central", **attributes}
    shape(parent, "text", x=x, y=y, font_size=size, **attributes).text = printable(text)


def to_string(root: ET.Element) -> str:
    return ET.tostring(root, encoding="unicode")


def printable(text: str) -> str:
    """`text` without the characters that XML cannot hold: labels may come from a model."""
    return _NOT_XML.sub("", text)


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)

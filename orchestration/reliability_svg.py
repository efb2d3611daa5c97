"""The reliability diagram as a picture: what verdicts say against what is true, and how many say it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.envs.svg import FIRST, GRID, SECOND, canvas, label, shape, to_string

SIDE = 300
"""Of the square that the diagonal crosses, in units of the picture."""
LEFT, TOP, BOTTOM, COUNTS = 52, 34, 46, 70
TICKS = (-1.0, -0.5, 0.0, 0.5, 1.0)


def reliability_svg(bars: Sequence[Mapping[str, Any]], title: str) -> str:
    """A self-contained SVG for light and dark pages.

    A point for each bin: across what its verdicts say, up what is true of them, both as verdicts in [-1, 1]; on the
    diagonal a verdict means what it says. Below, how many verdicts there are in each bin.

    Args:
        bars: as `nlrl.agents.metrics.calibration.Bin._asdict()`: probabilities in [0, 1], means of the bin.
    """
    root = canvas(LEFT + SIDE + 20, TOP + SIDE + BOTTOM + COUNTS, title)
    label(root, LEFT + SIDE / 2, 16, title, 14)
    _axes(root)
    most = max((bar["count"] for bar in bars), default=1)
    for bar in bars:
        if bar["count"]:
            _bar(root, bar, most)
    return to_string(root)


def _axes(root: ET.Element) -> None:
    shape(root, "rect", x=LEFT, y=TOP, width=SIDE, height=SIDE, fill="none", stroke=GRID)
    corners = {"x1": LEFT, "y1": TOP + SIDE, "x2": LEFT + SIDE, "y2": TOP}
    shape(root, "line", **corners, stroke=GRID, stroke_dasharray="5 4")
    for tick in TICKS:
        across, up = _place((tick + 1) / 2, (tick + 1) / 2)
        label(root, across, TOP + SIDE + 12, f"{tick:+g}" if tick else "0", 11)
        label(root, LEFT - 16, up, f"{tick:+g}" if tick else "0", 11)
    label(root, LEFT + SIDE / 2, TOP + SIDE + 30, "the verdict says", 12)
    label(root, 12, TOP + SIDE / 2, "the exact value is", 12, transform=f"rotate(-90 12 {TOP + SIDE / 2})")


def _bar(root: ET.Element, bar: Mapping[str, Any], most: int) -> None:
    across, up = _place(bar["probability"], bar["outcome"])
    shape(root, "line", x1=across, y1=_place(0, bar["probability"])[1], x2=across, y2=up, stroke=SECOND, stroke_width=2)
    shape(root, "circle", cx=across, cy=up, r=4.5, fill=FIRST)
    width, height = SIDE * (bar["high"] - bar["low"]), 0.6 * COUNTS * bar["count"] / most
    left, floor = LEFT + SIDE * bar["low"], TOP + SIDE + BOTTOM + COUNTS - 4
    shape(root, "rect", x=left + 1, y=floor - height, width=width - 2, height=height, fill=FIRST)
    label(root, left + width / 2, floor - height - 8, str(bar["count"]), 9)


def _place(across: float, up: float) -> tuple[float, float]:
    return LEFT + SIDE * across, TOP + SIDE * (1 - up)

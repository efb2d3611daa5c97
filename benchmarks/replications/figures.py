"""Charts and tables of the replications' pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import altair as alt

from nlrl.errors import NLRLError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart; in the order of the arms, never by rank."""
WIDTH, HEIGHT = 300, 230
SCALE = 2
"""Pixels of a PNG for each of the chart's."""


@dataclass(frozen=True)
class Section:
    """A part of a page: text, then the table, then the figures."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = ()
    """The first row is the header."""
    figures: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """(What a reader sees, chart) by the name of the file, without ending."""

    def markdown(self) -> str:
        images = [f"![{seen}]({name}.png)" for name, (seen, _) in self.figures.items()]
        return "\n\n".join(part for part in (f"## {self.title}", self.text, table(self.table), *images) if part)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are set to the right."""
    if not rows:
        return ""
    rule = ["---", *("---:" for _ in rows[0][1:])]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in (rows[0], rule, *rows[1:]))


def lines(
    records: Sequence[dict[str, Any]],
    x: tuple[str, str],
    y: tuple[str, str],
    arms: Sequence[str],
    panel: tuple[str, str] | None = None,
    log_x: bool = False,
    y_range: tuple[float, float] | None = None,
    points: bool = False,
) -> alt.TopLevelMixin:
    """A line for each `arm` and `seed` of the records (a record without seed has one line).

    Args:
        records: each with `arm` (a label), the fields named by x and y, and, if given, that of `panel`.
        x, y, panel: (field, title); every value of the panel's field gets a panel of its own, side by side.
        arms: labels, in the order of colours.
        y_range: what is shown; by default all.
    """
    chart = alt.Chart(alt.Data(values=_titled(records, panel))).mark_line(clip=True, point=points, strokeWidth=2)
    values = sorted({record[x[0]] for record in records})
    numbers = alt.Scale(type="log", domain=[values[0] / 1.1, values[-1] * 1.1]) if log_x and values else alt.Scale()
    ticks = alt.Axis(values=values, format="~g") if log_x else alt.Axis()
    shown = alt.Scale(domain=list(y_range)) if y_range else alt.Scale(zero=False)
    chart = chart.encode(
        x=alt.X(x[0], type="quantitative", title=x[1], scale=numbers, axis=ticks),
        y=alt.Y(y[0], type="quantitative", title=y[1], scale=shown),
        color=_colour(arms),
        detail=alt.Detail("seed", type="nominal"),
    )
    return _panels(chart, _titles(records, panel))


def bars(
    records: Sequence[dict[str, Any]],
    x: tuple[str, str],
    y: tuple[str, str],
    arms: Sequence[str],
    panel: tuple[str, str] | None = None,
) -> alt.TopLevelMixin:
    """A group of bars for each value of x, one for each `arm`: the mean of its records."""
    chart = alt.Chart(alt.Data(values=_titled(records, panel))).mark_bar()
    chart = chart.encode(
        x=alt.X(x[0], type="ordinal", title=x[1], sort=None, axis=alt.Axis(labelLimit=400)),
        y=alt.Y(y[0], type="quantitative", title=y[1], aggregate="mean"),
        color=_colour(arms),
    )
    if any(record[x[0]] != record["arm"] for record in records):
        chart = chart.encode(xOffset=alt.XOffset("arm", type="nominal", sort=list(arms)))
    return _panels(chart, _titles(records, panel))


def _colour(arms: Sequence[str]) -> alt.Color:
    scale = alt.Scale(domain=list(arms), range=[COLOURS[i % len(COLOURS)] for i in range(len(arms))])
    return alt.Color(
        "arm", type="nominal", scale=scale, title=None, legend=alt.Legend(orient="bottom", columns=3, labelLimit=400)
    )


def _titled(records: Sequence[dict[str, Any]], panel: tuple[str, str] | None) -> list[dict[str, Any]]:
    """With the title of its panel in each."""
    return [record | ({"panel": _title(record, panel)} if panel else {}) for record in records]


def _titles(records: Sequence[dict[str, Any]], panel: tuple[str, str] | None) -> list[str]:
    """Of the panels, in the order of the records."""
    return list(dict.fromkeys(_title(record, panel) for record in records)) if panel else []


def _title(record: dict[str, Any], panel: tuple[str, str]) -> str:
    return f"{panel[1]} {record[panel[0]]}".strip()


def _panels(chart: alt.Chart, titles: list[str]) -> alt.TopLevelMixin:
    chart = chart.properties(width=WIDTH, height=HEIGHT)
    if titles:
        header = alt.Header(labelFontSize=12, title=None)
        chart = chart.facet(column=alt.Column("panel", type="ordinal", sort=titles, header=header))  # pyright: ignore
    chart = chart.configure(background="white").configure_legend(labelFontSize=12)
    return chart.configure_axis(labelFontSize=11, titleFontSize=12)


def write_png(chart, path: Path) -> None:
    """Raises: NLRLError: altair lacks what it makes pictures with."""
    try:
        import vl_convert  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise NLRLError("figures need the package vl-convert-python: pip install vl-convert-python") from None
    path.write_bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=SCALE))

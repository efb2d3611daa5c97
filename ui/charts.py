"""The pictures of the Learning page and of reports, as Altair charts: one look, safe for the colour-blind, and no fixed
colours but those of the palette, so that they do on light and dark pages.

Charts that lead somewhere have a selection called `SELECTION`, whose points name an iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from nlrl.ui.calibration import PHASES, PhaseScore
from nlrl.ui.learning import Point, Spent
from nlrl.ui.reading import Share

PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]
"""Okabe and Ito's colour-blind-safe set, grey in place of black, which dark pages swallow."""
SELECTION = "point"
HEIGHT = 400
"""Pixels of a picture on a page, its legend included."""
MOST_BANDS = 4
"""Curves whose intervals are drawn as bands; more would hide each other, and have bars."""
_COLUMNS = ["run", "iteration", "curve", "value", "low", "high"]

Runs = Mapping[str, Sequence[Point]]
"""Points by run."""


def curves(runs: Runs, title: str, rules: Mapping[str, float] | None = None, domain: Sequence[float] = ()) -> Any:
    """Lines by iteration with their 95% intervals.

    Args:
        runs: of one run every curve has a colour; of several every run has one, and curves differ by their dashes.
        title: of the vertical axis.
        rules: name -> height of horizontal lines, such as the exact optimum.
        domain: ends of the vertical axis.
    """
    table = pd.DataFrame([(run, *point) for run, points in runs.items() for point in points], columns=_COLUMNS)
    scale = alt.Scale(domain=list(domain)) if domain else alt.Scale()
    base = alt.Chart(table).encode(
        x=alt.X("iteration:Q", axis=alt.Axis(tickMinStep=1, format="d")), **_told_apart(table, len(runs) > 1)
    )
    picked = alt.selection_point(name=SELECTION, fields=["run", "iteration", "curve"], on="click")
    shown = alt.condition(picked, alt.value(1.0), alt.value(0.35))
    tooltip = ["run", "iteration", "curve", *(alt.Tooltip(f"{name}:Q", format=".4f") for name in _COLUMNS[3:])]
    y = alt.Y("value:Q", title=title, scale=scale)
    interval = base.mark_area(opacity=0.18) if len(table.groupby(["run", "curve"])) <= MOST_BANDS else base.mark_rule()
    layers = [
        interval.encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_line().encode(y=y),
        base.mark_point(filled=True, size=70).encode(y=y, opacity=shown, tooltip=tooltip).add_params(picked),
    ]
    return alt.layer(*_rules(rules or {}, scale, title), *layers).properties(height=HEIGHT)


def _told_apart(table: pd.DataFrame, several: bool) -> dict[str, Any]:
    names = list(table["run" if several else "curve"].unique())
    colour = alt.Color(
        "run:N" if several else "curve:N",
        title=None,
        scale=alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in range(len(names))]),
        legend=alt.Legend(orient="bottom", columns=2, labelLimit=400, symbolOpacity=1),
    )
    if not several or len(set(table["curve"])) < 2:
        return {"color": colour, "detail": "curve:N"}
    return {"color": colour, "strokeDash": alt.StrokeDash("curve:N", title=None, legend=alt.Legend(orient="bottom"))}


def _rules(rules: Mapping[str, float], scale: alt.Scale, title: str) -> list[Any]:
    """Lines with their names, beside each other where heights may be close."""
    rows = [{"name": name, "height": height, "place": place} for place, (name, height) in enumerate(rules.items())]
    if not rows:
        return []
    base = alt.Chart(pd.DataFrame(rows)).encode(y=alt.Y("height:Q", title=title, scale=scale))
    names = [
        base.transform_filter(alt.datum.place == row["place"])
        .mark_text(align="left", baseline="bottom", dy=-2, color="gray", clip=False)
        .encode(x=alt.value(6 + 200 * row["place"]), text="name:N")
        for row in rows
    ]
    return [base.mark_rule(strokeDash=[6, 4], color="gray").encode(tooltip=["name:N", "height:Q"]), *names]


def wins(runs: Mapping[str, Sequence[Share]], optima: Mapping[str, float] | None = None) -> Any:
    """Win rate by iteration, and the exact optimum against each opponent that is shown."""
    points = {
        run: [Point(s.iteration, f"against {s.opponent}", s.share, s.low, s.high) for s in shares if s.result == "win"]
        for run, shares in runs.items()
    }
    rules: dict[float, list[str]] = {}
    for opponent, height in (optima or {}).items():
        rules.setdefault(round(height, 4), []).append(opponent)
    named = {f"best against {', '.join(names)}: {height:.3f}": height for height, names in rules.items()}
    return curves(points, "win rate", named, (0, 1))


def reliability(bars: Sequence[Mapping[str, Any]]) -> Any:
    """What verdicts say against what is true, as verdicts in [-1, 1]; on the diagonal they mean what they say."""
    rows = [
        {"says": 2 * bar["probability"] - 1, "is": 2 * bar["outcome"] - 1, "verdicts": int(bar["count"])}
        for bar in bars
    ]
    ends = alt.Scale(domain=[-1, 1])
    few = alt.Axis(tickCount=5)
    x = alt.X("says:Q", title="the verdict says", scale=ends, axis=few)
    y = alt.Y("is:Q", title="the exact value is", scale=ends, axis=few)
    diagonal = alt.Chart(pd.DataFrame({"says": [-1, 1], "is": [-1, 1]})).mark_line(color="gray", strokeDash=[6, 4])
    points = alt.Chart(pd.DataFrame(rows)).encode(x=x, y=y)
    size = alt.Size("verdicts:Q", scale=alt.Scale(type="sqrt", range=[30, 500]), legend=alt.Legend(orient="bottom"))
    return alt.layer(
        diagonal.encode(x=x, y=y),
        points.mark_line(color=PALETTE[0], opacity=0.5),
        points.mark_point(filled=True, color=PALETTE[0], opacity=0.9).encode(
            size=size, tooltip=["says", "is", "verdicts"]
        ),
    ).properties(height=HEIGHT)


def phases(scores: Sequence[PhaseScore]) -> Any:
    """Brier score by phase of the game."""
    table = pd.DataFrame(scores, columns=PhaseScore._fields)
    return (
        alt.Chart(table)
        .mark_bar(color=PALETTE[0])
        .encode(
            x=alt.X("phase:N", sort=list(PHASES), title=None, axis=alt.Axis(labelAngle=0)),
            y=alt.Y("brier:Q", title="Brier score (0 is perfect)"),
            tooltip=list(PhaseScore._fields),
        )
        .properties(height=HEIGHT)
    )


def costs(spent: Sequence[Spent], unit: str) -> Any:
    """What each iteration cost in one unit, by stage."""
    table = pd.DataFrame([row for row in spent if row.unit == unit], columns=Spent._fields)
    stages = list(dict.fromkeys(table["stage"]))
    colours = alt.Scale(domain=stages, range=[PALETTE[i % len(PALETTE)] for i in range(len(stages))])
    return (
        alt.Chart(table)
        .mark_bar()
        .encode(
            x=alt.X("iteration:O", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("amount:Q", title=unit),
            color=alt.Color("stage:N", title=None, scale=colours, legend=alt.Legend(orient="bottom", columns=4)),
            tooltip=list(Spent._fields),
        )
        .properties(height=HEIGHT)
    )

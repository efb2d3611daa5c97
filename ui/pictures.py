"""Pictures of a replay as SVG strings: its board, a gauge, and the chart of both values over the plies.

They have no background and the colours of `nlrl.envs.svg`, so that they stand on light and dark pages; shape tells the
exact value (a solid bar, a line with dots) from the one that was parsed from texts (hatched, dashed with squares).
"""

from __future__ import annotations

import inspect
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from typing import Any

from nlrl.agents.language import number
from nlrl.envs import svg
from nlrl.envs.game import Game
from nlrl.ui.replay import Replay
from nlrl.ui.said import NEAREST, SOURCES, candidates_of

EXACT_NAME, SAID_NAME = "exact", "text"
MARKS = ("texts", "exact values", "nothing")
"""What may stand beside the moves on the board."""
CLICKED, HERE = "clicked", "here"


# -- the board ---------------------------------------------------------------------------------------------------------
def board(replay: Replay, ply: int, marks: str = MARKS[0]) -> str:
    """The position of a ply: the last move, the policy's candidates by probability, verdicts beside the moves, and of
    a walk its path beside a shortest one.

    Args:
        marks: one of `MARKS`.
    """
    one, game = replay.plies[ply], replay.game
    legal = set(game.legal_actions(one.state))
    arrows = {action: weight for action, weight in one.policy.items() if action in legal}
    labels = {action: number(verdict) for action, verdict in _marked(replay, ply, marks).items() if action in legal}
    walked: dict[str, Any] = {}
    if _shows_paths(game):
        walked = {"path": replay.states[: ply + 1], "shortest": True}
    return game.render_svg(one.state, replay.last_move(ply), arrows, labels, **walked)


def _marked(replay: Replay, ply: int, marks: str) -> Mapping[int, float]:
    one = replay.plies[ply]
    if marks == MARKS[1]:
        return {action: value for action, value in one.exact.q.items() if value is not None}
    if marks == MARKS[0]:
        listed = [candidate for record in one.records for candidate in candidates_of(record)]
        return {candidate["action"]: candidate["verdict"] for candidate in reversed(listed)}
    return {}


def _shows_paths(game: Game[Any]) -> bool:
    return {"path", "shortest"} <= inspect.signature(game.render_svg).parameters.keys()


# -- gauges ------------------------------------------------------------------------------------------------------------
_WIDTH, _HEIGHT, _BAR = 240, 62, 16


def gauge(title: str, value: float | None, names: tuple[str, str], exact: bool) -> str:
    """A value in [-1, 1] as a bar from the middle; None is an exact value that is unknown, or no text that has one.

    Args:
        names: whom -1 and +1 are good for.
        exact: solid; otherwise hatched.
    """
    shown = ("unknown" if exact else "none") if value is None else number(value)
    root = svg.canvas(_WIDTH, _HEIGHT, f"{title}: {shown}")
    svg.label(root, 0, 9, title, 12, text_anchor="start")
    svg.label(root, _WIDTH, 9, shown, 14, text_anchor="end", font_weight="bold")
    top, middle = 20, _WIDTH / 2
    svg.shape(root, "rect", x=0.5, y=top, width=_WIDTH - 1, height=_BAR, fill="none", stroke=svg.GRID)
    if value is not None:
        start, end = sorted((middle, middle + value * (middle - 1)))
        fill = svg.FIRST if exact else _hatched(root, svg.SECOND)
        svg.shape(root, "rect", x=start, y=top + 1, width=max(end - start, 2.0), height=_BAR - 2, fill=fill)
    svg.shape(root, "line", x1=middle, y1=top - 3, x2=middle, y2=top + _BAR + 3, stroke=svg.GRID, stroke_width=2)
    svg.label(root, 0, 50, names[0], 11, text_anchor="start")
    svg.label(root, _WIDTH, 50, names[1], 11, text_anchor="end")
    return svg.to_string(root)


def gauges(replay: Replay, ply: int, source: str = NEAREST) -> tuple[str, str]:
    """The exact value and the one that texts give, both from the first player's view."""
    names = _sides(replay.game)
    exact, said = replay.exact_value(ply), replay.said_value(ply, source)
    true = gauge("exact value, best play", exact, names, exact=True)
    return true, gauge("value in the text", said, names, exact=False)


def _sides(game: Game[Any]) -> tuple[str, str]:
    if game.num_players == 1:
        return "bad", "good"
    return f"{game.player_names[1]} wins", f"{game.player_names[0]} wins"


def _hatched(root: ET.Element, colour: str) -> str:
    pattern = {"id": "hatched", "width": 6, "height": 6, "patternUnits": "userSpaceOnUse"}
    found = svg.shape(root, "pattern", **pattern, patternTransform="rotate(45)")
    svg.shape(found, "rect", width=4, height=6, fill=colour)
    return "url(#hatched)"


# -- the chart ---------------------------------------------------------------------------------------------------------
def chart_rows(replay: Replay, source: str = NEAREST) -> list[dict[str, Any]]:
    """Both values over the plies: {"ply", "value", "what", "move"}, what is not known left out."""
    rows = []
    for one in replay.plies:
        move = replay.title(one.number)
        for what, value in (
            (EXACT_NAME, replay.exact_value(one.number)),
            (SAID_NAME, replay.said_value(one.number, source)),
        ):
            if value is not None:
                rows.append({"ply": one.number, "value": round(value, 4), "what": what, "move": move})
    return rows


def chart_spec(replay: Replay) -> dict[str, Any]:
    """The same for Vega-Lite, over the rows of `chart_rows` and `here`; a click selects the nearest point as `CLICKED`.

    Written as data, because checking an equal Altair chart takes longer than all the rest of a step; and the same for
    all plies, so that a browser changes its rows and does not draw it anew.
    """
    names, last = [EXACT_NAME, SAID_NAME], max(len(replay.plies) - 1, 1)
    x = {"field": "ply", "type": "quantitative", "axis": {"tickMinStep": 1}, "scale": {"domain": [0, last]}}
    title = f"value for {replay.game.player_names[0]}"
    y = {"field": "value", "type": "quantitative", "title": title, "scale": {"domain": [-1, 1]}}
    colour = {"domain": names, "range": [svg.FIRST, svg.SECOND]}
    dashes, shapes = {"domain": names, "range": [[1, 0], [5, 4]]}, {"domain": names, "range": ["circle", "square"]}
    what = {"field": "what", "type": "nominal", "title": None}
    shared = {"x": x, "y": y, "color": {**what, "scale": colour, "legend": {"orient": "bottom"}}}
    tooltip = [{"field": name, "type": "nominal"} for name in ("move", "what", "value")]
    rule = {"type": "rule", "color": svg.GRID, "strokeWidth": 2}
    click = {"name": CLICKED, "select": {"type": "point", "fields": ["ply"], "nearest": True}}
    values = [{"filter": f"datum.what !== '{HERE}'"}]
    return {
        "height": 250,
        "layer": [
            {"transform": [{"filter": f"datum.what === '{HERE}'"}], "mark": rule, "encoding": {"x": x}},
            {
                "transform": values,
                "mark": "line",
                "encoding": {**shared, "strokeDash": {**what, "legend": None, "scale": dashes}},
            },
            {
                "transform": values,
                "mark": {"type": "point", "filled": True, "size": 70},
                "encoding": {**shared, "shape": {**what, "legend": None, "scale": shapes}, "tooltip": tooltip},
                "params": [click],
            },
        ],
    }


def here(ply: int) -> dict[str, Any]:
    """The row of a chart that says where the reader is."""
    return {"ply": ply, "value": None, "what": HERE, "move": ""}


def chart(replay: Replay, source: str = NEAREST, width: int = 480, height: int = 150) -> str:
    """The same as a picture, for files that have no scripts."""
    root = svg.canvas(width, height, "values over the plies, from the first player's view")
    last = max(len(replay.plies) - 1, 1)

    def at(ply: int, value: float) -> tuple[float, float]:
        return 34 + (width - 46) * ply / last, 12 + (height - 36) * (1 - value) / 2

    for value in (1, 0, -1):
        (left, y), (right, _) = at(0, value), at(last, value)
        svg.shape(root, "line", x1=left, y1=y, x2=right, y2=y, stroke=svg.GRID, stroke_opacity=0.4)
        svg.label(root, 16, y, f"{value:+d}" if value else "0", 11)
    for ply in range(0, last + 1, max(1, last // 12)):
        svg.label(root, at(ply, 0)[0], height - 8, str(ply), 11)
    rows = chart_rows(replay, source)
    for what, colour, dashes in ((EXACT_NAME, svg.FIRST, None), (SAID_NAME, svg.SECOND, "5 4")):
        points = [at(row["ply"], row["value"]) for row in rows if row["what"] == what]
        _curve(root, points, colour, dashes)
    return svg.to_string(root)


def _curve(root: ET.Element, points: Sequence[tuple[float, float]], colour: str, dashes: str | None) -> None:
    style = {"stroke_dasharray": dashes} if dashes else {}
    joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    svg.shape(root, "polyline", points=joined, fill="none", stroke=colour, stroke_width=2, **style)
    for x, y in points:
        if dashes:
            svg.shape(root, "rect", x=x - 3, y=y - 3, width=6, height=6, fill=colour)
        else:
            svg.shape(root, "circle", cx=x, cy=y, r=3.5, fill=colour)


SOURCE_CHOICES = (NEAREST, *SOURCES)

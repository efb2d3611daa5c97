"""Where in the viewer a person is: a place is a run, a stage, a game and a ply, and all of it stands in the URL.

Addresses come from outside and may name what is not there any more: reading them never fails, and pages look up what
they name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlencode

REPLAY, LAB, PLAY = "replay", "lab", "play"
"""`url_path` of the pages that links lead to."""
FIELDS = ("run", "stage", "game", "ply")
_MOST_PLIES = 1_000_000


class Place(NamedTuple):
    """A position of a recorded game. Fields that are empty (`ply`: 0) are not in the URL."""

    run: str = ""
    """The run's folder, relative to the folder of runs; "." if it is that folder itself."""
    stage: str = ""
    """Iteration and stage, as `003/rollout`."""
    game: str = ""
    """The key of the game's record."""
    ply: int = 0
    """Moves made before the position: 0 is the start."""


def place_of(params: Mapping[str, str]) -> Place:
    """The place that query parameters (`st.query_params`) name; what cannot be read counts as not there."""
    return Place(params.get("run", ""), params.get("stage", ""), params.get("game", ""), _ply(params.get("ply", "")))


def params_of(place: Place) -> dict[str, str]:
    """The query parameters of a place: for `st.query_params`, `st.switch_page` and `st.page_link`."""
    return {name: str(value) for name, value in place._asdict().items() if value}


def url_of(place: Place, page: str = REPLAY) -> str:
    """An address relative to the viewer's, for links in tables."""
    return f"{page}?{urlencode(params_of(place))}"


def _ply(text: str) -> int:
    return min(int(text), _MOST_PLIES) if text.isascii() and text.isdigit() and len(text) < 10 else 0

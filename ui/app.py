"""The viewer's navigation. Its pages are the functions `show` of `nlrl.ui.pages`; a page is imported when it is opened,
and files are read anew when they change. Nothing is written under a run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import streamlit as st

from nlrl.ui.pages.common import PAGES, plain

TITLES = {
    "runs": "Runs",
    "learning": "Learning",
    "games": "Games",
    "replay": "Replay",
    "lab": "Position lab",
    "play": "Play",
    "live": "Live",
    "diary": "Diary",
    "records": "Records",
}
"""Name of the page's module, which is its address, and its title; the first is where the viewer opens."""


def main(folder: Path) -> None:
    st.set_page_config("nlrl", layout="wide")
    pages = {
        name: st.Page(shown(name, folder), title=title, url_path=name, default=number == 0)
        for number, (name, title) in enumerate(TITLES.items())
        if find_spec(f"nlrl.ui.pages.{name}") is not None
    }
    st.session_state[PAGES] = pages
    page: Any = st.navigation(list(pages.values()))
    st.sidebar.caption(f"Runs under {plain(str(folder))}")
    page.run()


def shown(name: str, folder: Path) -> Callable[[], None]:
    """The page as Streamlit calls it."""

    def show() -> None:
        import_module(f"nlrl.ui.pages.{name}").show(folder)

    return show

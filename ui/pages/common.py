"""What the pages share: the chosen run, what is kept in memory, and the way to another page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st

from nlrl.errors import NLRLError
from nlrl.orchestration.run_folder import CONFIG_FILE
from nlrl.ui import calibration, library
from nlrl.ui.links import REPLAY, Place, params_of
from nlrl.ui.reading import Stamp, harmless

PAGES = "pages of the viewer"
"""Where the session keeps the pages that there are, by name."""
LAST = "the run seen last"


# -- runs --------------------------------------------------------------------------------------------------------------
@st.cache_data(max_entries=4096, show_spinner=False)
def cached_run(name: str, path: Path, changed: Stamp) -> library.Run:
    return library.read_run(name, path)


def run_of(name: str, path: Path) -> library.Run:
    """A run as it is now."""
    run = cached_run(name, path, library.run_stamp(path))
    if run.progress.state != "running":
        return run
    now = library.progress_of(path, run.config, run.metrics, run.changed)  # a driver may end without a trace
    return run._replace(progress=now)


@st.cache_data(max_entries=64, show_spinner="Comparing verdicts with exact values ...")
def cached_calibration(run: Path, iteration: int, changed: Stamp) -> calibration.Calibration | None:
    return calibration.calibration(run, iteration)


def choose_run(folder: Path) -> tuple[str, Path] | None:
    """The run that the address names, or that the person chooses beside the page; None where there is none."""
    runs = library.named_runs(folder)
    if not runs:
        st.info(f"No runs under {plain(str(folder))} yet. `nlrl run configs/demo.toml` makes one.")
        return None
    names = list(runs)
    asked = st.query_params.get("run") or st.session_state.get(LAST)
    if asked is not None and asked not in runs:
        st.warning("The run that the address names is not here.")
    name = st.sidebar.selectbox("Run", names, index=names.index(asked) if asked in runs else 0, key="run")
    st.session_state[LAST] = name
    if st.query_params.get("run") != name:
        st.query_params["run"] = name
    st.title(plain(name))
    return name, runs[name]


def problems(run: library.Run) -> None:
    """Says what of a run could not be read."""
    if run.problem:
        st.error(plain(run.problem))
    elif not run.config:
        st.warning(f"The run's {CONFIG_FILE} cannot be read.")


def refused(error: NLRLError | OSError | ValueError, what: str) -> None:
    """Says why something cannot be shown."""
    st.error(f"{what} cannot be shown: {plain(str(error))}")


# -- ways --------------------------------------------------------------------------------------------------------------
def go(page: str, params: Mapping[str, str]) -> None:
    """Opens another page; where it does not exist, says so."""
    pages = st.session_state.get(PAGES, {})
    if page in pages:
        st.switch_page(pages[page], query_params=dict(params))
    st.info(f"This viewer has no page called {page}.")


def go_to_game(place: Place) -> None:
    """Opens a game at its place."""
    go(REPLAY, params_of(place))


def link_to_game(place: Place) -> None:
    """A link to a game at its place."""
    pages = st.session_state.get(PAGES, {})
    if REPLAY in pages:
        st.page_link(pages[REPLAY], label="Replay this game", query_params=params_of(place))


# -- words -------------------------------------------------------------------------------------------------------------
def plain(text: str) -> str:
    """A name or a message as Markdown that shows it as it is."""
    return re.sub(r"([*_#|])", r"\\\1", harmless(" ".join(text.split())))


def table_height(rows: int) -> Any:
    """Pixels for a table of so many rows, a dozen at most before it scrolls."""
    return 38 + 35 * min(max(rows, 1), 12)

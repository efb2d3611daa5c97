"""The Games page: every game of the chosen runs, filtered, sorted and by pages; a row leads to its replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from nlrl.errors import NLRLError
from nlrl.ui import library
from nlrl.ui.games_index import PAGE, SORTS, Error, Filters, GamesIndex, Source, source_stamp, sources_of
from nlrl.ui.links import Place
from nlrl.ui.pages.common import LAST, go_to_game, plain, refused, table_height
from nlrl.ui.value_errors import value_errors


@st.cache_resource(max_entries=4, show_spinner="Opening the games ...")
def cached_index(sources: tuple[Source, ...], changed: Any, with_errors: bool) -> GamesIndex:
    return GamesIndex(sources, cached_errors(sources, changed) if with_errors else None)


@st.cache_data(max_entries=16, show_spinner="Comparing what was said with exact values ...")
def cached_errors(sources: tuple[Source, ...], changed: Any) -> list[Error]:
    return value_errors(sources)


def show(folder: Path) -> None:
    st.title("Games")
    runs = choose_runs(folder)
    if runs is None:
        return
    sources = tuple(source for name, path in runs.items() for source in sources_of(name, path, seed_of(path)))
    if not sources:
        st.info("No games yet: they are recorded while a run plays.")
        return
    with_errors = st.sidebar.toggle(
        "Value errors", key="errors", help="How far the values that the player states are from best play, game by game."
    )
    try:
        index = cached_index(sources, tuple(map(source_stamp, sources)), with_errors)
        show_index(index, with_errors)
    except (NLRLError, OSError) as error:
        refused(error, "The games")


def choose_runs(folder: Path) -> dict[str, Path] | None:
    """The runs whose games are shown; None without any."""
    runs = library.named_runs(folder)
    if not runs:
        st.info(f"No runs under {plain(str(folder))} yet. `nlrl run configs/demo.toml` makes one.")
        return None
    asked = st.query_params.get("run") or st.session_state.get(LAST)
    if asked is not None and asked not in runs:
        st.warning("The run that the address names is not here.")
    first = asked if asked in runs else next(iter(runs))
    names = st.sidebar.multiselect("Runs", list(runs), [first], key="runs of games") or [first]
    st.session_state[LAST] = names[0]
    if st.query_params.get("run") != names[0]:
        st.query_params["run"] = names[0]
    return {name: runs[name] for name in names}


def seed_of(run: Path) -> str:
    return str(library.read_config(run).get("seed", ""))


def show_index(index: GamesIndex, with_errors: bool) -> None:
    ranges = index.ranges()
    if not ranges:
        st.info("No whole game yet.")
        return
    filters = choose_filters(index.choices(), ranges, with_errors)
    left, right, _ = st.columns([2, 1, 3], vertical_alignment="bottom")
    sort = left.selectbox("Order by", SORTS if with_errors else SORTS[:-1], key="sort")
    descending = right.checkbox("Descending", key="descending")
    left, right, _ = st.columns([1, 2, 4], vertical_alignment="bottom")
    number = left.number_input("Page", 1, None, key=f"page {filters} {sort} {descending}")
    right.download_button(
        "Download as CSV", lambda: index.csv(filters, sort, descending), "games.csv", "text/csv", key="csv"
    )
    found = index.page(filters, sort, descending, int(number) - 1)
    if not found.total:
        st.info("No game passes these filters.")
        return
    pages = -(-found.total // PAGE)
    counted = f"{found.total:,} game{'s' * (found.total > 1)} on {pages:,} page{'s' * (pages > 1)}"
    st.caption(f"{counted}. Choose a row to replay its game.")
    show_page(found.rows, index.columns)


def show_page(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    event: Any = st.dataframe(
        pd.DataFrame(rows, columns=list(columns)),
        hide_index=True,
        key="games",
        height=table_height(len(rows)),
        on_select="rerun",
        selection_mode="single-row",
        column_config={"value_error": st.column_config.NumberColumn("value error", format="%.3f")},
    )
    chosen = event.selection.rows
    if chosen and chosen[0] < len(rows):
        row = rows[chosen[0]]
        go_to_game(Place(row["run"], row["stage"], row["key"]))


# -- filters -----------------------------------------------------------------------------------------------------------
def choose_filters(
    choices: Mapping[str, Sequence[Any]], ranges: Mapping[str, tuple[int, int]], with_errors: bool
) -> Filters:
    """What the person filters by; only what differs between games is offered."""
    text = st.text_input("Replies that contain", key="text")
    offered: list[Callable[[], tuple[str, Any]]] = [
        lambda name=name: (name, tuple(st.multiselect(name.capitalize(), choices[name], key=f"only {name}")))
        for name in ("result", "opponent", "stage", "seat", "game", "seed", "run")
        if len(choices[name]) > 1
    ]
    offered += [
        lambda name=name, field=field: (field, choose_range(name, ranges[name]))
        for name, field in (("iteration", "iterations"), ("length", "lengths"))
        if ranges[name][0] < ranges[name][1]
    ]
    offered.append(lambda: ("forfeits", st.checkbox("Only forfeits", key="only forfeits")))
    offered.append(lambda: ("failures", st.checkbox("Only with failed replies", key="only failures")))
    if with_errors:
        offered.append(lambda: ("least_error", choose_error()))
    found: dict[str, Any] = {}
    columns = st.columns(4)
    for place, choose in enumerate(offered):
        with columns[place % 4]:
            name, value = choose()
            found[name] = value
    return Filters(**found, text=text)


def choose_range(name: str, ends: tuple[int, int]) -> tuple[int, int] | None:
    """A range within `ends`; of iterations first the one that the address names. None is all of it."""
    asked = st.query_params.get(name, "")
    at = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else None
    first = (at, at) if at is not None and ends[0] <= at <= ends[1] else ends
    found = st.slider(name.capitalize(), *ends, first, key=f"only {name}")
    return None if found == ends else found


def choose_error() -> float | None:
    least = st.number_input("Value error at least", 0.0, 2.0, 0.0, 0.1, key="only errors")
    return float(least) or None

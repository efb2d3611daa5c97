"""The Replay page: a game move by move, what was said beside what is true."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from nlrl.errors import NLRLError
from nlrl.orchestration.records import record_files
from nlrl.orchestration.run_folder import RunFolder
from nlrl.ui import pictures, tables
from nlrl.ui.card_view import show_card
from nlrl.ui.cards import Card, make_card
from nlrl.ui.export import export_html, file_name
from nlrl.ui.game_records import find_run, game_keys, game_stages, run_config, stage_folder
from nlrl.ui.library import named_runs
from nlrl.ui.links import LAB, Place, params_of, place_of
from nlrl.ui.pages.common import LAST, plain, refused
from nlrl.ui.pages.common import go as go_to_page
from nlrl.ui.player import SPEEDS, Playing, clamped
from nlrl.ui.reading import Stamp, stamp
from nlrl.ui.replay import Replay, load_replay

LISTED = 500
"""Games that the selection lists; any other is found by its address, as the Games page links it."""
SHOWN = "place of the replay"
PLAYING = "replay is playing"


@st.cache_resource(max_entries=32, show_spinner="Looking for exact values ...")
def cached_replay(run: Path, stage: str, key: str, changed: Stamp) -> Replay:
    return load_replay(run, stage, key)


@st.cache_resource(max_entries=256, show_spinner=False)
def cached_card(run: Path, stage: str, key: str, ply: int, changed: Stamp, _replay: Replay) -> Card:
    return make_card(_replay, ply, run_config(run))


@st.cache_data(max_entries=64, show_spinner=False)
def cached_keys(folder: Path, changed: Stamp) -> list[str]:
    return game_keys(folder, LISTED)


@st.cache_data(max_entries=64, show_spinner=False)
def cached_stages(run: Path, changed: Stamp) -> list[str]:
    return game_stages(run)


def show(folder: Path) -> None:
    """Draws the page; the URL says which game and ply, and is rewritten when they change."""
    address = place_of(st.query_params)
    if not any(address):  # opened from the sidebar: where the person was
        address = st.session_state.get(SHOWN, address)
    moved = st.session_state.get(SHOWN) != address
    st.session_state[SHOWN] = address
    chosen = choose_game(folder, address, moved)
    if chosen is None:
        return
    place, run = chosen
    changed = changes_of(run, place.stage)
    try:
        replay = cached_replay(run, place.stage, place.game, changed)
    except (NLRLError, OSError, ValueError) as error:
        refused(error, "This game")
        return
    if moved or place != address or "ply" not in st.session_state:
        stop()
        st.session_state.ply = clamped(place.ply, len(replay.plies) - 1)
    show_header(replay)
    playing: Playing | None = st.session_state.get(PLAYING)
    st.fragment(show_player, run_every=1 / playing.speed if playing else None)(place, run, replay, changed)


def changes_of(run: Path, stage: str) -> Stamp:
    """Changes whenever a record is added to the stage's iteration."""
    folder = stage_folder(run, stage)
    return () if folder is None else stamp([path for one in folder.parent.glob("*/") for path in record_files(one)])


def all_files(run: Path) -> list[Path]:
    """The record files of a run."""
    return [path for stage in RunFolder(run).stages() for path in record_files(stage.dir)]


# -- which game --------------------------------------------------------------------------------------------------------
def choose_game(folder: Path, place: Place, moved: bool) -> tuple[Place, Path] | None:
    """The game of the address, or of the selections above the board; None where there is none.

    Args:
        moved: the address has been changed from outside, so that it counts and not what was selected.
    """
    runs = named_runs(folder)
    if not runs:
        st.info(f"No runs under {plain(str(folder))} yet. `nlrl run configs/demo.toml` makes one.")
        return None
    if place.run and find_run(folder, place.run) is None:
        st.warning("There is no such run here; choose another.")
    left, middle, right = st.columns(3)
    wanted = place.run or st.session_state.get(LAST) or ""
    name = select(left, "Run", list(runs), wanted, moved) or next(iter(runs))
    stages = cached_stages(runs[name], stamp(all_files(runs[name])))
    stage = select(middle, "Stage", stages, place.stage, moved)
    stage_dir = stage and stage_folder(runs[name], stage)
    if not stage or not stage_dir:
        st.info("This run has no games yet.")
        return None
    keys = cached_keys(stage_dir, changes_of(runs[name], stage))
    named = [place.game] if place.game and (place.run, place.stage) == (name, stage) else []
    key = select(right, "Game", list(dict.fromkeys([*keys, *named])), place.game, moved)
    if not key:
        return None
    return Place(name, stage, key, place.ply if key == place.game else 0), runs[name]


def select(where: Any, label: str, options: list[str], wanted: str, moved: bool) -> str | None:
    """A selection that follows the address, if that has moved, and otherwise the person."""
    key = f"replay {label}"
    if moved or st.session_state.get(key) not in options:
        st.session_state[key] = wanted if wanted in options else next(iter(options), None)
    return where.selectbox(label, options, key=key)


def show_header(replay: Replay) -> None:
    lines = [tables.accuracy_line(replay.player_of(p), replay.accuracy(p)) for p in range(replay.game.num_players)]
    st.caption("  \n".join(map(plain, lines)))
    if replay.problem:
        st.warning(plain(f"The game is {replay.problem}"))
    for reason in replay.reasons:
        st.info(plain(f"Some exact values are unknown: {reason}"))


# -- the player --------------------------------------------------------------------------------------------------------
def show_player(place: Place, run: Path, replay: Replay, changed: Stamp) -> None:
    """Everything that follows the ply; a step draws this and nothing else."""
    last = len(replay.plies) - 1
    ply = current_ply(last)
    place = place._replace(ply=ply)
    note_address(place)
    source = st.session_state.get("source") or pictures.SOURCE_CHOICES[0]
    st.markdown(f"**{plain(replay.title(ply))}**")
    left, middle, right = st.columns([4, 4, 4])
    with left:
        st.image(pictures.board(replay, ply, st.session_state.get("marks") or pictures.MARKS[0]))
        show_judgement(replay, ply)
        show_buttons(replay, ply, last)
    with middle:
        for picture, column in zip(pictures.gauges(replay, ply, source), st.columns(2), strict=True):
            column.image(picture)
        show_chart(replay, ply, source)
        st.dataframe(pd.DataFrame(tables.tablebase(replay, ply)), hide_index=True)
    with right:
        rows = pd.DataFrame(tables.moves(replay, source))
        st.session_state.moves = {"selection": {"rows": [ply], "columns": [], "cells": []}}
        st.dataframe(rows, hide_index=True, on_select=on_row, selection_mode="single-row", key="moves")
    show_settings(place, replay, source)
    show_card(cached_card(run, place.stage, place.game, ply, changed, replay), replay.plies[ply].records)


def current_ply(last: int) -> int:
    """The ply to show; it moves on while the game is played back, which ends at the end."""
    playing: Playing | None = st.session_state.get(PLAYING)
    ply = clamped(st.session_state.get("ply", 0), last) if playing is None else playing.at(time.monotonic(), last)
    st.session_state.ply = ply
    if playing is not None and ply == last:
        stop()
        st.rerun()  # without the timer
    return ply


def note_address(place: Place) -> None:
    st.session_state[SHOWN] = place
    st.session_state[LAST] = place.run
    if st.query_params.to_dict() != params_of(place):
        st.query_params.from_dict(params_of(place))


def show_buttons(replay: Replay, ply: int, last: int) -> None:
    """First, previous, play, next, last, next blunder; with keys."""
    blunder = replay.next_blunder(ply)
    steps = (
        ("First", "Home", "first", 0),
        ("Back", "Left", "previous", ply - 1),
        ("Next", "Right", "next", ply + 1),
        ("Last", "End", "last", last),
        ("Next ??", "B", "next blunder", blunder),
    )
    row = st.container(horizontal=True)
    for label, key, name, target in steps:
        row.button(
            label,
            key=f"go {name}",
            shortcut=key,
            disabled=target is None or clamped(target, last) == ply,
            on_click=go,
            args=(clamped(target or 0, last),),
        )
    if last:
        st.slider("Ply", 0, last, key="ply", on_change=stop)
        playing = PLAYING in st.session_state
        left, right = st.columns(2)
        if left.button("Stop" if playing else "Play", key="play", shortcut="P"):
            stop() if playing else start(ply, last)
            st.rerun()  # the timer belongs to the fragment as a whole
        right.selectbox("Moves a second", SPEEDS, index=1, key="speed")


def show_judgement(replay: Replay, ply: int) -> None:
    one = replay.plies[ply]
    if one.judgement is not None:
        st.caption(plain(one.judgement.sentence))
    elif one.action is not None:
        st.caption("Not judged: the exact value of this position or move is unknown.")


def show_chart(replay: Replay, ply: int, source: str) -> None:
    """Both values over the plies; a click goes there."""
    rows = pd.DataFrame([*pictures.chart_rows(replay, source), pictures.here(ply)])
    spec = pictures.chart_spec(replay)
    st.vega_lite_chart(rows, spec, on_select=on_point, selection_mode=pictures.CLICKED, key="chart")


def show_settings(place: Place, replay: Replay, source: str) -> None:
    left, middle, right, lab = st.columns(4, vertical_alignment="bottom")
    left.selectbox("Beside the moves", pictures.MARKS, key="marks")
    middle.selectbox("Value in the text from", pictures.SOURCE_CHOICES, key="source")
    right.download_button(
        "Download the game (HTML)",
        lambda: export_html(replay, run_config(replay.run) if replay.run else None, source),
        file_name(replay),
        "text/html",
        on_click="ignore",
        key="download",
    )
    if lab.button("Open in the lab", key="open lab"):
        go_to_page(LAB, params_of(place))


# -- what changes the ply ----------------------------------------------------------------------------------------------
def go(ply: int) -> None:
    stop()
    st.session_state.ply = ply


def stop() -> None:
    st.session_state.pop(PLAYING, None)


def start(ply: int, last: int) -> None:
    speed = float(st.session_state.get("speed") or 1.0)
    st.session_state[PLAYING] = Playing(time.monotonic(), 0 if ply == last else ply, speed)


def on_point() -> None:
    chosen = st.session_state.chart["selection"].get(pictures.CLICKED) or []
    if chosen and isinstance(chosen[0].get("ply"), int | float):
        go(int(chosen[0]["ply"]))


def on_row() -> None:
    rows = st.session_state.moves["selection"]["rows"]
    if rows:
        go(int(rows[0]))

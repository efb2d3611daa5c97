"""The Live page: follows a run through its folder while it goes on."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd
import streamlit as st

from nlrl.errors import NLRLError
from nlrl.orchestration.records import GAME_KINDS
from nlrl.ui import charts, library, live, reading
from nlrl.ui.links import Place
from nlrl.ui.pages.common import choose_run, link_to_game, problems, refused, run_of, table_height

RATES = {"every second": 1, "every 2 seconds": 2, "every 10 seconds": 10, "when I ask": None}


@st.cache_resource(max_entries=64)
def counter_of(run: Path) -> live.Counter:
    return live.Counter()


def show(folder: Path) -> None:
    chosen = choose_run(folder)
    if chosen is None:
        return
    rate = st.sidebar.selectbox("Refresh", list(RATES), index=1, key="rate")
    finished = run_of(*chosen).progress.state == "finished"
    every = None if finished else RATES[rate]
    st.fragment(follow, run_every=every)(*chosen)
    if every is None and not finished:
        st.button("Refresh now", key="refresh")


def follow(name: str, path: Path) -> None:
    """One look at the run."""
    try:
        run = run_of(name, path)
        problems(run)
        show_state(run)
        show_stages(live.stages_now(path, run.config, counter_of(path)))
        show_figures(run)
        show_newest(name, path)
    except (NLRLError, OSError) as error:
        refused(error, "The run")


def show_state(run: library.Run) -> None:
    age = f", last change {max(0.0, time.time() - run.changed):.0f} s ago" if run.changed else ""
    st.caption(f"{run.progress.state}, iterations {run.progress.words}{age}")
    if run.progress.iterations:
        st.progress(min(1.0, (run.progress.iteration or 0) / run.progress.iterations))


def show_stages(stages: list[live.StageNow]) -> None:
    if not stages:
        st.info("Nothing has begun yet.")
        return
    st.dataframe(pd.DataFrame(stages), hide_index=True, key="stages", height=table_height(len(stages)))


def show_figures(run: library.Run) -> None:
    if not run.metrics:
        st.info("No metrics yet: they are written after each iteration.")
        return
    for column, (what, value) in zip(st.columns(max(len(run.figures), 1)), run.figures.items(), strict=False):
        column.metric(what, f"{value:.3f}")
    shares = [share for share in reading.shares(run.metrics) if share.how != "sampled" and share.result == "win"]
    how = shares[0].how if shares else ""
    if shares:
        st.altair_chart(charts.wins({run.name: [s for s in shares if s.how == how]}), width="stretch", key="live wins")


def show_newest(name: str, path: Path) -> None:
    found = live.newest(path)
    if not found:
        return
    st.subheader("Written last")
    for one in found:
        st.caption(f"{one.kind} of {one.stage}")
        if one.text:
            st.code(one.text, language=None, wrap_lines=True)
        if one.kind in GAME_KINDS:
            link_to_game(Place(name, one.stage, one.key))

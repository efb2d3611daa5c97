"""The viewer's page: `streamlit run app.py -- RUNS`. Files are read anew when they change, and nothing is written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from nlrl import envs
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.records import Record, record_files
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics
from nlrl.ui import boards, reading

DIARY_FILE = "evaluations.md"
PAGE = 50
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]  # Okabe and Ito's colour-blind-safe set
HIDDEN = ("schema", "kind", "key", "turns", "candidates", "evaluations", "samples")


@st.cache_data(max_entries=64)
def cached_metrics(path: Path, stamp: reading.Stamp) -> list[dict[str, Any]]:
    return read_metrics(path)


@st.cache_data(max_entries=8)
def cached_records(folder: Path, stamp: reading.Stamp) -> list[Record]:
    return reading.read_stage(folder)


def main(runs_dir: Path) -> None:
    st.set_page_config("nlrl", layout="wide")
    runs = reading.find_runs(runs_dir)
    if not runs:
        st.info(f"No runs under {runs_dir} yet. `nlrl run configs/demo.toml` makes one.")
        return
    names = {str(run.relative_to(runs_dir)) if run != runs_dir else run.name: run for run in runs}
    name = st.sidebar.selectbox("Run", names, key="run")
    st.title(name)
    run = names[name]
    for title, show, tab in zip(
        ("learning", "diary", "records"),
        (show_learning, show_diary, show_records),
        st.tabs(["Learning", "Diary", "Records"]),
        strict=True,
    ):
        with tab:
            try:
                show(run)
            except (NLRLError, OSError) as error:
                st.error(f"The {title} cannot be shown: {error}")


# -- learning ----------------------------------------------------------------------------------------------------------
def show_learning(run: Path) -> None:
    metrics = cached_metrics(run / METRICS_FILE, reading.stamp([run / METRICS_FILE]))
    if not metrics:
        st.info("No metrics yet: they are written after each iteration.")
        return
    shares = reading.shares(metrics)
    kinds = sorted({share.how for share in shares})
    if kinds:
        how = st.radio(
            "Games", kinds, horizontal=True, key="how", help="exact: every game of the greedy actor, weighted"
        )
        chosen = [share for share in shares if share.how == how]
        st.altair_chart(win_chart(chosen))
        st.dataframe(reading.learning_table(chosen), hide_index=True)
    with st.expander("All numbers", expanded=not kinds):
        numbers = pd.DataFrame({entry["step"]: entry["metrics"] for entry in metrics}, dtype=object)
        st.dataframe(numbers.sort_index().rename_axis("iteration", axis=1))


def win_chart(shares: list[reading.Share]) -> Any:
    """Win rate by iteration, one line an opponent, with 95% intervals."""
    wins = pd.DataFrame([share for share in shares if share.result == "win"], columns=reading.Share._fields)
    base = alt.Chart(wins).encode(
        x=alt.X("iteration:Q", axis=alt.Axis(tickMinStep=1)),
        color=alt.Color("opponent:N", scale=alt.Scale(range=COLOURS)),
    )
    scale = alt.Scale(domain=[0, 1])
    line = base.mark_line(point=True).encode(
        y=alt.Y("share:Q", title="win rate", scale=scale), tooltip=list(reading.Share._fields)
    )
    return alt.layer(
        base.mark_area(opacity=0.2).encode(y=alt.Y("low:Q", title="win rate", scale=scale), y2="high:Q"), line
    )


# -- diary -------------------------------------------------------------------------------------------------------------
def show_diary(run: Path) -> None:
    path = run / DIARY_FILE
    if path.is_file():
        st.markdown(reading.harmless(path.read_text(errors="replace")))
    else:
        st.info("No diary yet: it is written after each evaluation.")


# -- records -----------------------------------------------------------------------------------------------------------
def show_records(run: Path) -> None:
    stages = reading.stages(run)
    if not stages:
        st.info("No records yet.")
        return
    shelf = st.selectbox("Stage", stages, index=len(stages) - 1, key="stage")
    folder = stages[shelf]
    records = cached_records(folder, reading.stamp(record_files(folder)))
    kinds = sorted({record["kind"] for record in records})
    if len(kinds) > 1:
        kind = st.selectbox("Kind", kinds, key="kind")
        records = [record for record in records if record["kind"] == kind]
        shelf += f" {kind}"
    if not records:
        st.info("No whole record yet.")
        return
    pages = -(-len(records) // PAGE)
    page = int(st.number_input(f"Page (of {pages})", 1, pages, key=f"page of {shelf}"))
    shown = records[(page - 1) * PAGE : page * PAGE]
    summary = [{k: str(v)[:80] for k, v in record.items() if k not in HIDDEN} for record in shown]
    st.dataframe(pd.DataFrame(summary), height=240)
    number = st.number_input("Record", 0, len(shown) - 1, key=f"record on page {page} of {shelf}")
    show_record(run, shown[int(number)])


def show_record(run: Path, record: Record) -> None:
    left, right = st.columns(2)
    found = positions_of(run, record)
    number = 0
    with left:
        if len(found) > 1:
            number = int(st.slider("Move", 0, len(found) - 1, len(found) - 1, key=f"move {record['key']}"))
        if found:
            st.image(found[number].svg, caption=found[number].caption)
    with right:
        if found and found[number].text:
            st.code(found[number].text, language=None, wrap_lines=True)
        st.json(record, expanded=not found)


def positions_of(run: Path, record: Record) -> list[boards.Position]:
    try:
        game = game_of(run, record)
        return boards.positions(game, record) if game else []
    except (NLRLError, ValueError, KeyError, TypeError) as error:
        st.warning(f"No picture: {error}")
        return []


def game_of(run: Path, record: Record) -> Game[Any] | None:
    """The game that the record names, else the run's."""
    if "game" in record:
        return envs.make_from_spec(record["game"])
    spec = reading.game_spec(run)
    return envs.make(spec[0], **spec[1]) if spec else None


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))

"""The Records page: whatever a run recorded, record by record, with a picture where there is a board."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from nlrl import envs
from nlrl.envs.game import Game
from nlrl.errors import NLRLError
from nlrl.orchestration.records import Record, record_files
from nlrl.ui import boards, reading
from nlrl.ui.pages.common import choose_run, plain, refused

PAGE = 50
HIDDEN = ("schema", "kind", "key", "turns", "candidates", "evaluations", "samples")


@st.cache_data(max_entries=8, show_spinner="Reading the records ...")
def cached_records(folder: Path, changed: reading.Stamp) -> list[Record]:
    return reading.read_stage(folder)


def show(folder: Path) -> None:
    chosen = choose_run(folder)
    if chosen is None:
        return
    try:
        show_records(chosen[1])
    except (NLRLError, OSError) as error:
        refused(error, "The records")


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
            st.image(found[number].svg, caption=plain(found[number].caption))
    with right:
        if found and found[number].text:
            st.code(found[number].text, language=None, wrap_lines=True)
        st.json(record, expanded=not found)


def positions_of(run: Path, record: Record) -> list[boards.Position]:
    try:
        game = game_of(run, record)
        return boards.positions(game, record) if game else []
    except (NLRLError, ValueError, KeyError, TypeError) as error:
        st.warning(f"No picture: {plain(str(error))}")
        return []


def game_of(run: Path, record: Record) -> Game[Any] | None:
    """The game that the record names, else the run's."""
    if "game" in record:
        return envs.make_from_spec(record["game"])
    spec = reading.game_spec(run)
    return envs.make(spec[0], **spec[1]) if spec else None

"""The Diary page: the same positions, asked again after every iteration."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from nlrl.ui import reading
from nlrl.ui.pages.common import choose_run, refused

DIARY_FILE = "evaluations.md"


def show(folder: Path) -> None:
    chosen = choose_run(folder)
    if chosen is None:
        return
    path = chosen[1] / DIARY_FILE
    if not path.is_file():
        st.info("No diary yet: it is written after each evaluation.")
        return
    try:
        st.markdown(reading.harmless(path.read_text(errors="replace")))
    except OSError as error:
        refused(error, "The diary")

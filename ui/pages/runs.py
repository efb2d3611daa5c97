"""The Runs page: what runs there are, where their configs differ, how far they are; several of them compared."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from nlrl.ui import charts, learning, library, reading
from nlrl.ui.pages.common import go, plain, run_of, table_height

MOST = 7
"""Runs compared at once: as many as there are colours."""
WIN_RATES = "win rate"


def show(folder: Path) -> None:
    st.title("Runs")
    runs = [run_of(name, path) for name, path in library.named_runs(folder).items()]
    if not runs:
        st.info(f"No runs under {plain(str(folder))} yet. `nlrl run configs/demo.toml` makes one.")
        return
    for run in runs:
        if run.problem:
            st.error(f"{plain(run.name)}: {plain(run.problem)}")
    table = table_of(runs)
    event: Any = st.dataframe(
        table,
        hide_index=True,
        key="runs",
        height=table_height(len(table)),
        on_select="rerun",
        selection_mode="multi-row",
        column_config={"done": st.column_config.ProgressColumn("done", format="percent", min_value=0, max_value=1)},
    )
    chosen = [runs[row] for row in event.selection.rows if row < len(runs)]
    if len(chosen) == 1:
        ways(chosen[0])
    compare((chosen or sorted(runs, key=lambda run: -run.changed))[:MOST])


def table_of(runs: Sequence[library.Run]) -> pd.DataFrame:
    """One row a run: progress, last figures, and the config fields in which the runs differ."""
    differences = library.differences(runs)
    rows = []
    for run in runs:
        progress = run.progress
        done = (progress.iteration or 0) / progress.iterations if progress.iterations else None
        rows.append(
            {
                "run": run.name,
                "state": progress.state,
                "iteration": progress.words,
                "done": done,
                **{name: run.figures.get(name) for name, _ in library.FIGURES},
                **{field: values[run.name] for field, values in differences.items()},
                "changed": datetime.fromtimestamp(run.changed).isoformat(" ", "seconds") if run.changed else "",
            }
        )
    empty = [name for name, _ in library.FIGURES if all(row[name] is None for row in rows)]
    return pd.DataFrame(rows).drop(columns=empty)


def ways(run: library.Run) -> None:
    """From one run to its pages."""
    for column, (page, words) in zip(
        st.columns(6),
        (("learning", "Learning"), ("games", "Games"), ("live", "Live"), ("diary", "Diary")),
        strict=False,
    ):
        if column.button(words, key=f"to {page}"):
            go(page, {"run": run.name})


# -- comparison --------------------------------------------------------------------------------------------------------
def compare(runs: Sequence[library.Run]) -> None:
    """Learning curves of several runs over each other, and where their configs differ."""
    measured = [run for run in runs if run.metrics]
    if not measured:
        st.info("No metrics yet: they are written after each iteration.")
        return
    st.subheader("Compared" if len(measured) > 1 else "Learning curve")
    st.caption("Choose rows of the table to compare those runs; none chosen: the newest.")
    names = [*kinds_of(measured), *metric_names(measured)]
    what = st.selectbox("Figure", names, key="figure")
    st.altair_chart(chart_of(measured, what), width="stretch", key="comparison")
    if differing := library.differences(measured):
        with st.expander("Where their configs differ"):
            st.dataframe(pd.DataFrame(differing).T.rename_axis("field"), key="differences")


def kinds_of(runs: Sequence[library.Run]) -> list[str]:
    """The kinds of win rates that there are, by opponent: the random player's first."""
    found = {(s.how, s.opponent) for run in runs for s in reading.shares(run.metrics) if s.result == "win"}
    ordered = sorted(found, key=lambda pair: (pair[1] != "random", pair[0] == "sampled", pair))
    return [f"{WIN_RATES} ({how}) against {opponent}" for how, opponent in ordered]


def metric_names(runs: Sequence[library.Run]) -> list[str]:
    """Every number that one of the runs logged."""
    return sorted({name for run in runs for entry in run.metrics for name in entry["metrics"]})


def chart_of(runs: Sequence[library.Run], what: str) -> Any:
    """The curves of one figure."""
    for how, opponent in {(s.how, s.opponent) for run in runs for s in reading.shares(run.metrics)}:
        if what == f"{WIN_RATES} ({how}) against {opponent}":
            shares = {
                run.name: [s for s in reading.shares(run.metrics) if (s.how, s.opponent) == (how, opponent)]
                for run in runs
            }
            games = {learning.spec_of(run.path) for run in runs}
            best = learning.optima(runs[0].path, [opponent]) if len(games) == 1 else {}
            return charts.wins(shares, best)
    points = {
        run.name: [
            learning.Point(entry["step"], what, float(value), float(value), float(value))
            for entry in run.metrics
            if isinstance(value := entry["metrics"].get(what), int | float)
        ]
        for run in runs
    }
    return charts.curves(points, what)

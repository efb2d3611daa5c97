"""The Learning page: what a run learned by iteration, beside what is possible. A click on a point leads to the games of
that iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from nlrl.errors import NLRLError
from nlrl.orchestration.records import MANIFEST_FILE, record_files
from nlrl.ui import charts, learning, library, reading, report
from nlrl.ui.calibration import PhaseScore
from nlrl.ui.pages.common import cached_calibration, choose_run, go, plain, problems, refused, run_of


def show(folder: Path) -> None:
    chosen = choose_run(folder)
    if chosen is None:
        return
    run = run_of(*chosen)
    problems(run)
    st.caption(f"{run.progress.state}, iterations {run.progress.words}")
    if not run.metrics:
        if not run.problem:
            st.info("No metrics yet: they are written after each iteration.")
        return
    show_wins(run)
    show_curves(run)
    show_calibration(run)
    show_costs(run)
    show_exports(run)
    with st.expander("All numbers", expanded=not reading.shares(run.metrics)):
        numbers = pd.DataFrame({entry["step"]: entry["metrics"] for entry in run.metrics}, dtype=object)
        st.dataframe(numbers.sort_index().rename_axis("iteration", axis=1), key="numbers")


# -- curves ------------------------------------------------------------------------------------------------------------
def show_wins(run: library.Run) -> None:
    shares = reading.shares(run.metrics)
    kinds = sorted({share.how for share in shares})
    if not kinds:
        return
    how = st.radio("Games", kinds, horizontal=True, key="how", help="exact: every game of the greedy actor, weighted")
    found = [share for share in shares if share.how == how]
    opponents = list(dict.fromkeys(share.opponent for share in found if share.result == "win"))
    clickable(run, f"wins {how}", charts.wins({run.name: found}, learning.optima(run.path, opponents)))
    st.caption("Bands: 95% intervals. Dashed: the best that is possible. Click a point to see that iteration's games.")
    st.dataframe(reading.learning_table(found), hide_index=True, key="learning")


def show_curves(run: library.Run) -> None:
    pictures = (
        ("Exploitability of the greedy actor", "return", learning.exploitability(run.metrics)),
        ("Ratings", "rating", learning.ratings(run.metrics)),
        ("Verdicts against exact values", "error", learning.verdict_errors(run.metrics)),
        ("Unreadable answers and forfeits", "share", learning.failures(run.metrics)),
    )
    shown = [picture for picture in pictures if picture[2]]
    for row in range(0, len(shown), 2):
        for column, (title, axis, points) in zip(st.columns(2), shown[row : row + 2], strict=False):
            with column:
                st.subheader(title)
                clickable(run, title, charts.curves({run.name: points}, axis))


def clickable(run: library.Run, key: str, chart: Any) -> None:
    """A chart whose points lead to the games of their iteration."""
    event: Any = st.altair_chart(
        chart, width="stretch", key=f"chart {key}", on_select="rerun", selection_mode=charts.SELECTION
    )
    if (iteration := clicked(event)) is not None:
        go("games", {"run": run.name, "iteration": str(iteration)})


def clicked(event: Mapping[str, Any]) -> int | None:
    """The iteration of the point that was clicked; None where none was."""
    points = event.get("selection", {}).get(charts.SELECTION) or []
    found = points[0].get("iteration") if points and isinstance(points[0], Mapping) else None
    return int(found) if isinstance(found, int | float) else None


# -- calibration -------------------------------------------------------------------------------------------------------
def show_calibration(run: library.Run) -> None:
    bars = learning.reliability(run.path)
    judged = [int(path.parent.name) for path in run.path.glob("iterations/*/improvement") if path.parent.name.isdigit()]
    iterations = sorted({*bars, *judged})
    if not iterations:
        return
    st.subheader("Calibration of the critic")
    last = iterations[-1]
    iteration = st.select_slider("Iteration", iterations, last, key="calibrated") if len(iterations) > 1 else last
    left, right = st.columns(2)
    found = None
    try:
        found = cached_calibration(run.path, iteration, calibration_stamp(run.path, iteration))
    except (NLRLError, OSError, ValueError) as error:
        refused(error, "The calibration")
    with left:
        show_reliability(bars.get(iteration) or (found.bars if found else []))
    with right:
        if found:
            show_phases(found.against, found.phases)


def calibration_stamp(run: Path, iteration: int) -> reading.Stamp:
    folders = [run / "iterations" / f"{iteration:03d}" / name for name in ("improvement", "policy")]
    return reading.stamp([file for folder in folders for file in (*record_files(folder), folder / MANIFEST_FILE)])


def show_reliability(bars: Sequence[Mapping[str, Any]]) -> None:
    if not bars:
        st.info("No verdicts of this iteration are compared with exact values.")
        return
    st.altair_chart(charts.reliability(bars), width="stretch", key="reliability")
    st.caption("On the dashed line a verdict means what it says; the larger a point, the more verdicts.")


def show_phases(against: str, scores: Sequence[PhaseScore]) -> None:
    st.altair_chart(charts.phases(scores), width="stretch", key="phases")
    whose = "the policy that is judged" if against == "policy" else "best play"
    told = ", ".join(f"{one.phase} {one.brier:.4f} ({one.verdicts})" for one in scores)
    st.caption(f"Candidates of the iteration's choices, against exact values of {whose}. Brier (verdicts): {told}.")


# -- costs -------------------------------------------------------------------------------------------------------------
def show_costs(run: library.Run) -> None:
    spent = learning.spent(run.path, run.metrics)
    units = list(dict.fromkeys(row.unit for row in spent))
    if not units:
        return
    st.subheader("What it cost, by stage")
    unit = st.radio("Unit", units, horizontal=True, key="unit")
    st.altair_chart(charts.costs(spent, unit), width="stretch", key="costs")
    total = sum(row.amount for row in spent if row.unit == unit)
    st.caption(f"{plain(unit)}: {total:,.0f} in all")


# -- exports -----------------------------------------------------------------------------------------------------------
def show_exports(run: library.Run) -> None:
    """Figures as files, and the run as a page to share."""
    if not st.toggle("Save figures or a report", key="save"):
        return
    figures = {figure.title: figure for figure in report.figures(run)}
    chosen = figures.get(st.selectbox("Figure", figures, key="saved"))
    columns = st.columns([1, 1, 1, 3])
    if chosen is not None:
        for column, form in zip(columns, ("svg", "png"), strict=False):
            content = partial(report.picture, chosen.chart, form)
            column.download_button(form.upper(), content, f"{chosen.name}.{form}", key=f"save as {form}")
    columns[2].download_button("Report", partial(report.static_page, run), "report.html", key="save report")

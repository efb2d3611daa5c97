"""Runs, Learning, Games, Live and Diary, run by Streamlit's own test driver on scripted runs."""

from __future__ import annotations

import pytest

from nlrl.testing import write_run
from nlrl.ui import charts
from nlrl.ui.learning import Point
from nlrl.ui.pages import learning as learning_page
from nlrl.ui.pages import runs as runs_page

from .replayed import draw, open_page, params, words
from .shelf import EVIL, GAMES, METRICS, config, played, write_growing, write_shelf

PAGES = ("runs", "learning", "games", "live", "diary", "records")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    return write_shelf(tmp_path_factory.mktemp("shelf"))


def table(app, key):
    """A table; those in which nothing can be chosen have no key in the driver, and are told by their place."""
    return next(frame.value for at, frame in enumerate(app.dataframe) if frame.key == key or at == key)


def select(app, key, **selection):
    """Chooses rows of a table, or points of a chart."""
    app.session_state[key] = {"selection": {"rows": [], "columns": [], "cells": [], **selection}}
    return draw(app)


def pictures(app):
    return len(app.get("vega_lite_chart"))


# -- every page --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("page", PAGES)
def test_a_folder_without_runs_says_how_to_make_one(page, tmp_path):
    assert "nlrl run" in words(open_page(page, tmp_path))


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("run", ["empty", "torn", "growing", "whole"])
def test_every_run_is_shown_as_far_as_it_goes(page, run, shelf):
    app = open_page(page, shelf, run=run)
    errors = "\n".join(error.value for error in app.error)
    if run == "torn" and page in ("runs", "learning", "live"):
        assert "metrics.jsonl, line 2" in errors
    elif page != "runs":
        assert not errors
    assert not any(markup in words(app) for markup in ("<script>", "[a](", "http://")), "a model's words are markup"


@pytest.mark.parametrize("page", PAGES[1:])
def test_the_address_names_the_run_and_a_wrong_one_is_said_to_be_missing(page, shelf):
    assert params(open_page(page, shelf, run="group/other"))["run"] == "group/other"
    app = open_page(page, shelf, run="../../etc")
    assert "not here" in words(app)
    assert params(app)["run"] == "empty"


# -- runs --------------------------------------------------------------------------------------------------------------
def test_the_table_of_runs_has_progress_figures_and_differences(shelf):
    rows = table(open_page("runs", shelf), "runs").set_index("run")
    assert list(rows.index) == ["empty", "group/other", "growing", "old", "torn", "whole"]
    assert rows.loc["whole", "iteration"] == "1 of 3"
    assert rows.loc["whole", "win (greedy)"] == 0.74
    assert rows.loc["group/other", "seed"] == "4"
    assert list(rows["state"]) == ["empty", "stopped", "stopped", "stopped", "empty", "stopped"]
    assert "true claims" not in rows.columns  # nobody measured them


def test_chosen_runs_are_compared_in_one_chart(shelf):
    app = select(open_page("runs", shelf), "runs", rows=[1, 5])
    assert pictures(app) == 1
    assert list(table(app, 1).loc["seed"]) == ["4", "3"]
    app.selectbox(key="figure").set_value("evaluation/exact/exploitability")
    assert pictures(draw(app)) == 1


def test_one_chosen_run_leads_to_its_pages(shelf):
    app = select(open_page("runs", shelf), "runs", rows=[5])
    app.button(key="to games").click()
    assert "no page called games" in words(draw(app))  # there is no other page in this test


def test_a_comparison_has_a_colour_a_run_and_the_optimum_of_their_game(shelf):
    from nlrl.ui.library import named_runs, read_run

    runs = [read_run(name, path) for name, path in named_runs(shelf).items() if name in ("whole", "group/other")]
    spec = runs_page.chart_of(runs, "win rate (greedy) against random").to_dict()
    text = str(spec)
    assert "best against random: 0.967" in text
    assert "group/other" in text
    assert spec["layer"][-1]["encoding"]["color"]["field"] == "run"


# -- learning ----------------------------------------------------------------------------------------------------------
def test_learning_shows_every_figure_that_there_is(shelf):
    app = open_page("learning", shelf, run="whole")
    titles = [title.value for title in app.subheader]
    for title in ("Exploitability", "Ratings", "Verdicts", "Unreadable", "Calibration", "What it cost"):
        assert any(title in shown for shown in titles)
    assert list(table(app, 0)["win"]) == ["0.440", "0.740"]
    assert pictures(app) == 8
    app.radio(key="how").set_value("greedy")
    assert list(table(draw(app), 0)["win"]) == ["0.440 [0.390, 0.490]", "0.740 [0.690, 0.790]"]


def test_numbers_of_any_name_are_listed(tmp_path):
    write_run(tmp_path / "run", metrics=[{"train/loss": 2.5}])
    assert table(open_page("learning", tmp_path), 0).loc["train/loss", 0] == 2.5


def test_a_point_that_is_clicked_leads_to_the_games_of_its_iteration(shelf):
    app = select(
        open_page("learning", shelf, run="whole"), "chart wins exact", point=[{"iteration": 1, "run": "whole"}]
    )
    assert "no page called games" in words(app)
    assert learning_page.clicked({"selection": {charts.SELECTION: [{"iteration": 3.0}]}}) == 3
    for nothing in (
        {},
        {"selection": {}},
        {"selection": {charts.SELECTION: []}},
        {"selection": {charts.SELECTION: [{}]}},
    ):
        assert learning_page.clicked(nothing) is None


def test_figures_and_a_report_can_be_saved(shelf):
    app = open_page("learning", shelf, run="whole")
    assert not app.get("download_button")
    app.toggle(key="save").set_value(True)
    app = draw(app)
    assert [button.label for button in app.get("download_button")] == ["SVG", "PNG", "Report"]
    assert "Exploitability" in app.selectbox(key="saved").options


def test_curves_can_be_clicked():
    spec = charts.curves({"run": [Point(0, "curve", 0.5, 0.4, 0.6)]}, "win rate").to_dict()
    assert charts.SELECTION in [param["name"] for param in spec["params"]]


# -- games -------------------------------------------------------------------------------------------------------------
def test_games_are_filtered_by_what_differs_between_them(shelf):
    app = open_page("games", shelf, run="whole")
    assert "5 games" in words(app)
    assert [widget.key for widget in app.sidebar.multiselect] == ["runs of games"]
    keys = [widget.key for widget in app.multiselect]
    assert "only result" in keys
    assert "only game" not in keys  # all are of one game
    app.multiselect(key="only result").set_value(["win", "draw"])
    assert list(table(draw(app), "games")["key"]) == ["a1", "b1"]
    app.text_input(key="text").set_value("STRASSE")
    assert list(table(draw(app), "games")["key"]) == ["b1"]
    app.text_input(key="text").set_value("'; DROP TABLE games; --")
    assert "No game passes" in words(draw(app))


def test_a_hostile_text_is_found_as_it_is(shelf):
    app = open_page("games", shelf, run="whole")
    app.text_input(key="text").set_value(EVIL)
    assert list(table(draw(app), "games")["key"]) == ["a3"]


def test_an_address_with_an_iteration_shows_its_games(shelf):
    app = open_page("games", shelf, run="whole", iteration="2")
    assert list(table(app, "games")["key"]) == ["c1", "b1"]
    for wrong in ("9", "x", "-1", "9" * 40):
        assert "5 games" in words(open_page("games", shelf, run="whole", iteration=wrong))


def test_games_of_several_runs_are_one_table(shelf):
    app = open_page("games", shelf, run="whole")
    app.multiselect(key="runs of games").set_value(["whole", "old", "growing", "group/other"])
    assert "20 games" in words(draw(app))
    app.multiselect(key="only seed").set_value(["4"])
    assert set(table(draw(app), "games")["run"]) == {"group/other"}


def test_games_are_sorted_and_value_errors_shown_when_asked_for(shelf):
    app = open_page("games", shelf, run="whole")
    app.toggle(key="errors").set_value(True)
    draw(app)
    app.selectbox(key="sort").set_value("value_error")
    app.checkbox(key="descending").set_value(True)
    rows = table(draw(app), "games")
    assert list(rows["key"])[:2] == ["b1", "a1"]
    assert list(rows["value_error"])[:2] == [0.5, 0.4]
    app.number_input(key="only errors").set_value(0.45)
    assert list(table(draw(app), "games")["key"]) == ["b1"]


def test_a_chosen_game_leads_to_its_replay(shelf):
    app = select(open_page("games", shelf, run="whole"), "games", rows=[0])
    assert "no page called replay" in words(app)


def test_games_come_in_pages(tmp_path):
    games = [played(f"{n:03d}", [4], "win") for n in range(51)]
    write_run(tmp_path / "run", records={"001/rollout": games})
    app = open_page("games", tmp_path)
    assert len(table(app, "games")) == 50
    next(widget for widget in app.number_input if widget.label == "Page").set_value(2)
    assert list(table(draw(app), "games")["key"]) == ["050"]


def test_damaged_records_are_named(tmp_path):
    run = write_run(tmp_path / "run", records={"001/rollout": GAMES["001/rollout"]})
    stage = run / "iterations/001/rollout"
    (stage / "games.parquet").unlink()
    (stage / "records.jsonl").write_text("torn\n" + (stage / "records.jsonl").read_text())
    assert "line 1" in open_page("games", tmp_path).error[0].value


# -- live --------------------------------------------------------------------------------------------------------------
def test_a_run_is_followed_while_it_grows(tmp_path):
    run = write_growing(tmp_path / "run", games=3)
    app = open_page("live", tmp_path)
    assert table(app, 0).to_dict("records") == [{"stage": "001/rollout", "state": "growing", "records": 3, "wanted": 8}]
    assert app.code[0].value == "I prefer 5 at +0.40.\nbest_move: 5"
    shard = run / "iterations/001/rollout/shards/games.jsonl"
    shard.write_text(shard.read_text() + '","turns":[{"reply":"<b>new</b>"}]}\n')
    app = draw(app)
    assert table(app, 0)["records"][0] == 4
    assert app.code[0].value == "<b>new</b>"


def test_a_finished_run_is_shown_once(tmp_path):
    write_run(tmp_path / "run", config=config(), metrics=[*METRICS, {}, {"x": 1.0}], records=GAMES)
    app = open_page("live", tmp_path)
    assert "finished, iterations 3 of 3" in words(app)
    assert [metric.label for metric in app.metric][:2] == ["win (greedy)", "win (exact)"]
    assert pictures(app) == 1


# -- diary -------------------------------------------------------------------------------------------------------------
def test_the_diary_is_shown_without_the_models_markup(shelf):
    (diary,) = [m.value for m in open_page("diary", shelf, run="whole").markdown if "Diary" in m.value]
    assert "\\<script\\>" in diary

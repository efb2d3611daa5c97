"""The page, run by Streamlit's own test driver on made-up runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

import nlrl.ui.app
from nlrl.envs import make
from nlrl.testing import write_run

APP = str(Path(nlrl.ui.app.__file__))
GAME = make("tictactoe")
START = GAME.to_text(GAME.initial_states()[0])
CONFIG = 'name = "demo"\n[game]\nname = "tictactoe"\n'
WIN = "evaluation/sampled/greedy/random/win/"
METRICS = [{f"{WIN}share": w, f"{WIN}low": w - 0.05, f"{WIN}high": w + 0.05, "rollout/games": 9} for w in (0.44, 0.74)]
PLAYED = {
    "kind": "game",
    "game": "tictactoe",
    "start": START,
    "actions": [4, 0, 8],
    "turns": [{"ply": 0, "reply": "<i>middle</i> best_move: 5"}],
    "result": "draw",
}


@pytest.fixture
def open_app(tmp_path, monkeypatch):
    """Runs the page on the runs under tmp_path."""
    monkeypatch.setattr(sys, "argv", ["app.py", str(tmp_path)])

    def run() -> AppTest:
        app = AppTest.from_file(APP, default_timeout=60).run()
        assert not app.exception
        return app

    return run


def infos(app: AppTest) -> str:
    return "\n".join(info.value for info in app.info)


def test_a_folder_without_runs_says_how_to_make_one(open_app):
    app = open_app()
    assert "nlrl run" in infos(app)
    assert not app.tabs


def test_an_empty_run_shows_that_nothing_is_there_yet(open_app, tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "run" / "metrics.jsonl").unlink()
    app = open_app()
    assert app.title[0].value == "run"
    for words in ("No metrics yet", "No diary yet", "No records yet"):
        assert words in infos(app)
    assert not app.error


def test_a_run_shows_its_learning_table_and_chart(open_app, tmp_path):
    write_run(tmp_path / "run", config=CONFIG, metrics=METRICS)
    app = open_app()
    table, numbers = (frame.value for frame in app.dataframe)
    assert list(table["win"]) == ["0.440 [0.390, 0.490]", "0.740 [0.690, 0.790]"]
    assert list(numbers.loc["rollout/games"]) == [9, 9]
    assert len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) == 1


def test_metrics_without_games_are_shown_as_numbers(open_app, tmp_path):
    write_run(tmp_path / "run", metrics=[{"train/loss": 2.5}])
    app = open_app()
    assert app.dataframe[0].value.loc["train/loss", 0] == 2.5


def test_a_torn_last_line_is_left_out_and_comes_with_its_rest(open_app, tmp_path):
    path = write_run(tmp_path / "run", metrics=METRICS) / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole[:-20])
    assert len(open_app().dataframe[0].value) == 1
    path.write_text(whole)
    assert len(open_app().dataframe[0].value) == 2


def test_damage_in_the_middle_is_named_and_the_rest_still_shown(open_app, tmp_path):
    run = write_run(tmp_path / "run", metrics=METRICS, diary="# Opinions\n")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "torn", lines[1], ""]))
    app = open_app()
    assert "metrics.jsonl, line 2" in app.error[0].value
    assert any("Opinions" in markdown.value for markdown in app.markdown)


def test_the_diary_is_shown_without_the_models_markup(open_app, tmp_path):
    write_run(tmp_path / "run", diary="# Diary\n\n> <script>x</script> ![](http://host/p.png)\n")
    (diary,) = [m.value for m in open_app().markdown if "Diary" in m.value]
    assert "\\<script\\>" in diary
    assert "![" not in diary


def test_a_game_record_is_drawn_move_by_move_beside_what_was_said(open_app, tmp_path):
    write_run(tmp_path / "run", config=CONFIG, records={"001/rollout": [PLAYED, PLAYED]})
    app = open_app()
    assert app.slider[0].max == 3
    assert not app.code
    app.slider[0].set_value(1).run()
    assert app.code[0].value == "<i>middle</i> best_move: 5"
    assert not app.exception
    assert not app.warning


def test_a_stage_kind_and_record_can_be_chosen(open_app, tmp_path):
    state = {"kind": "target", "state": START, "action": 4, "text": "even", "verdict": 0.0}
    records = {"001/rollout": [PLAYED], "001/targets": [state, {"kind": "note", "text": "x"}]}
    write_run(tmp_path / "run", config=CONFIG, records=records)
    app = open_app()
    assert app.selectbox(key="stage").value == "001/targets"
    assert list(app.selectbox(key="kind").options) == ["note", "target"]
    app.selectbox(key="kind").set_value("target").run()
    assert app.code[0].value == "even"
    app.selectbox(key="stage").set_value("001/rollout").run()
    assert app.slider[0].max == 3
    assert not app.exception


def test_a_record_whose_board_cannot_be_read_is_shown_without_a_picture(open_app, tmp_path):
    write_run(tmp_path / "run", config=CONFIG, records={"001/targets": [{"state": "chess"}]})
    app = open_app()
    assert "No picture" in app.warning[0].value
    assert "chess" in app.json[0].value


def test_long_stages_come_in_pages(open_app, tmp_path):
    records = {"001/few": [{"n": -1}], "001/notes": [{"n": n} for n in range(51)]}
    write_run(tmp_path / "run", records=records)
    app = open_app()
    assert len(app.dataframe[0].value) == 50
    page, record = app.number_input
    record.set_value(49)
    page.set_value(2).run()
    assert len(app.dataframe[0].value) == 1
    app.selectbox(key="stage").set_value("001/few").run()
    assert list(app.dataframe[0].value["n"]) == ["-1"]
    assert not app.exception


def test_one_of_several_runs_is_chosen(open_app, tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / name, diary=f"# {name}\n")
    app = open_app()
    app.selectbox(key="run").set_value("second").run()
    assert app.title[0].value == "second"
    assert any(m.value == "# second" for m in app.markdown)

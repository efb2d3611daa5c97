"""The Records page, run by Streamlit's own test driver."""

from __future__ import annotations

from nlrl.testing import write_run

from .replayed import draw, open_page, words
from .shelf import START, config, played, turn

PLAYED = played("k", [4, 0, 8], "draw", turns=[turn(0, "<i>middle</i> best_move: 5")])


def test_a_run_without_records_says_so(tmp_path):
    write_run(tmp_path / "run")
    assert "No records yet" in words(open_page("records", tmp_path))


def test_a_game_record_is_drawn_move_by_move_beside_what_was_said(tmp_path):
    write_run(tmp_path / "run", config=config(), records={"001/rollout": [PLAYED, {**PLAYED, "key": "l"}]})
    app = open_page("records", tmp_path)
    assert app.slider[0].max == 3
    assert not app.code
    app.slider[0].set_value(1)
    assert draw(app).code[0].value == "<i>middle</i> best_move: 5"
    assert not app.warning


def test_a_stage_kind_and_record_can_be_chosen(tmp_path):
    state = {"kind": "target", "state": START, "action": 4, "text": "even", "verdict": 0.0}
    records = {"001/rollout": [PLAYED], "001/targets": [state, {"kind": "note", "text": "x"}]}
    write_run(tmp_path / "run", config=config(), records=records)
    app = open_page("records", tmp_path)
    assert app.selectbox(key="stage").value == "001/targets"
    assert list(app.selectbox(key="kind").options) == ["note", "target"]
    app.selectbox(key="kind").set_value("target")
    assert draw(app).code[0].value == "even"
    app.selectbox(key="stage").set_value("001/rollout")
    assert draw(app).slider[0].max == 3


def test_a_record_whose_board_cannot_be_read_is_shown_without_a_picture(tmp_path):
    write_run(tmp_path / "run", config=config(), records={"001/targets": [{"state": "chess"}]})
    app = open_page("records", tmp_path)
    assert "No picture" in app.warning[0].value
    assert "chess" in app.json[0].value


def test_long_stages_come_in_pages(tmp_path):
    write_run(tmp_path / "run", records={"001/few": [{"n": -1}], "001/notes": [{"n": n} for n in range(51)]})
    app = open_page("records", tmp_path)
    assert len(app.dataframe[0].value) == 50
    page, record = app.number_input
    record.set_value(49)
    page.set_value(2)
    assert len(draw(app).dataframe[0].value) == 1
    app.selectbox(key="stage").set_value("001/few")
    assert list(draw(app).dataframe[0].value["n"]) == ["-1"]

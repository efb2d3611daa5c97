from __future__ import annotations

import json
import os

import pytest

from nlrl.envs import make
from nlrl.testing import write_run
from nlrl.ui.pages import replay as page
from nlrl.ui.player import Playing, clamped

from .replayed import (
    CONFIG,
    EVIL,
    KEY,
    PLAYED,
    REPLY,
    STAGES,
    TARGETS,
    draw,
    open_page,
    params,
    words,
    write_played,
)

PLACE = {"run": "run", "stage": "001/rollout", "game": KEY}
LAST = len(PLAYED["actions"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_played(folder / "run")
    return folder


def title(app):
    return app.markdown[0].value


def click(app, key):
    app.button(key=key).click()
    return draw(app)


def test_an_address_opens_its_position(folder):
    app = open_page("replay", folder, **PLACE, ply="1")
    assert title(app) == "**Move 2, X (random): 2**"
    assert "Blunder: 1, 3, 7 and 9 were best." in words(app)
    assert app.slider(key="ply").value == 1
    assert params(app) == PLACE | {"ply": "1"}


def test_without_an_address_the_first_game_is_opened_and_the_address_written(folder):
    assert params(open_page("replay", folder)) == PLACE


def test_buttons_step_and_the_address_follows(folder):
    app = open_page("replay", folder, **PLACE)
    for key, ply in (("next", 1), ("next", 2), ("previous", 1), ("last", LAST), ("first", 0), ("next blunder", 1)):
        click(app, f"go {key}")
        assert params(app).get("ply", "0") == str(ply), key
        assert app.slider(key="ply").value == ply
        assert app.session_state["moves"]["selection"]["rows"] == [ply]
    click(app, "go last")
    assert title(app) == f"**After {LAST} moves: draw for O**"
    assert app.button(key="go next").disabled


def test_buttons_have_keys(folder):
    app = open_page("replay", folder, **PLACE)
    found = {button.key: button.proto.shortcut for button in app.button}
    assert {key: found[key].lower() for key in ("go previous", "go next")} == {
        "go previous": "left",
        "go next": "right",
    }


def test_the_slider_moves_too_and_a_changed_address_wins(folder):
    app = open_page("replay", folder, **PLACE)
    app.slider(key="ply").set_value(4)
    draw(app)
    assert params(app)["ply"] == "4"
    app.query_params["ply"] = "2"
    draw(app)
    assert app.slider(key="ply").value == 2


def test_rows_and_points_lead_to_their_ply(folder, monkeypatch):
    state = {"moves": {"selection": {"rows": [3]}}, "chart": {"selection": {"clicked": [{"ply": 2}]}}}

    class State(dict):
        __getattr__ = dict.__getitem__
        __setattr__ = dict.__setitem__

    monkeypatch.setattr(page.st, "session_state", State(state))
    page.on_row()
    assert page.st.session_state.ply == 3
    page.on_point()
    assert page.st.session_state.ply == 2
    for nothing in ({"clicked": []}, {}):
        page.st.session_state.chart["selection"] = nothing
        page.on_point()
    assert page.st.session_state.ply == 2


def test_a_game_plays_by_itself_to_its_end(folder, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])
    app = click(open_page("replay", folder, **PLACE), "play")
    assert app.button(key="play").label == "Stop"
    now[0] += 2.5
    draw(app)
    assert params(app)["ply"] == "2"
    now[0] += 60
    draw(app)
    assert params(app)["ply"] == str(LAST)
    assert app.button(key="play").label == "Play"


def test_a_step_by_hand_stops_the_player(folder):
    app = click(open_page("replay", folder, **PLACE), "play")
    click(app, "go last")
    assert app.button(key="play").label == "Play"


def test_where_a_player_stands_depends_on_the_clock_alone():
    playing = Playing(10.0, 3, 2.0)
    assert [playing.at(now, 9) for now in (10.0, 10.4, 10.5, 11.9, 99.0)] == [3, 3, 4, 6, 9]
    assert (clamped(-1, 5), clamped(9, 5), clamped(2, 5)) == (0, 5, 2)


def test_another_game_is_chosen_and_begins_at_its_start(folder):
    app = open_page("replay", folder, **PLACE, ply="3")
    app.selectbox[2].set_value("bb22")
    draw(app)
    assert params(app) == PLACE | {"game": "bb22"}
    app.selectbox[2].set_value(KEY)
    draw(app)
    assert params(app) == PLACE


def test_the_tablebase_and_both_values_are_shown(folder):
    app = open_page("replay", folder, **PLACE)
    tablebase, moves = (frame.value for frame in app.dataframe[:2])
    assert list(tablebase["result"]) == ["draws"] * 9
    assert tablebase.set_index("move").loc["5", "text"] == "+0.60"
    assert list(moves["move"])[:2] == ["5 ★", "2 ??"]
    assert len(app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")) == 1
    app.selectbox(key="source").set_value(app.selectbox(key="source").options[-1])
    draw(app)
    assert app.dataframe[1].value["text"][0] == "+0.50"


def test_a_models_words_are_shown_as_they_are_and_only_as_code(folder):
    app = open_page("replay", folder, **PLACE)
    assert REPLY in [code.value for code in app.code]
    assert any(EVIL in code.value and "Compare the moves" in code.value for code in app.code)
    for piece in ("<script", "onerror", "evil.test", "\x1b"):
        assert piece not in words(app)
    assert any("✗ false" in list(frame.value.get("by the rules", [])) for frame in app.dataframe)


def test_hostile_names_make_no_markup(tmp_path):
    hostile = {**PLAYED, "opponent": EVIL, "result": EVIL}
    write_run(tmp_path / "run", config=CONFIG, records={"001/rollout": [hostile]})
    app = open_page("replay", tmp_path, **PLACE, ply="1")
    assert "\\<script\\>" in words(app)
    assert "<script" not in words(app).replace("\\<script", "")


def test_the_download_is_offered(folder):
    app = open_page("replay", folder, **PLACE)
    (found,) = app.get("download_button")
    assert found.proto.label == "Download the game (HTML)"


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ({"run": "../x"}, "no such run"),
        ({"run": "run", "stage": "009/none"}, "Move 1"),
        (PLACE | {"game": "<script>none"}, "no game"),
        (PLACE | {"ply": "999"}, f"After {LAST} moves"),
        (PLACE | {"ply": "x"}, "Move 1"),
    ],
)
def test_addresses_of_what_is_not_there_are_harmless(folder, place, says):
    app = open_page("replay", folder, **place)
    assert says in words(app)
    assert "<script" not in words(app).replace("\\<script", "")


def test_from_an_address_of_nothing_a_game_can_still_be_chosen(folder):
    app = open_page("replay", folder, **PLACE | {"game": "none"})
    assert app.error
    app.selectbox[2].set_value("bb22")
    draw(app)
    assert params(app) == PLACE | {"game": "bb22"}


def test_folders_without_runs_and_runs_without_games_say_so(tmp_path):
    assert "nlrl run" in words(open_page("replay", tmp_path))
    write_run(tmp_path / "empty")
    assert "no games yet" in words(open_page("replay", tmp_path))


def test_a_run_that_is_being_written_is_shown_and_its_torn_line_left_out(tmp_path):
    run = write_played(tmp_path / "run")
    folder = run / "iterations" / "001" / "rollout"
    os.remove(folder / "manifest.json")
    (folder / "shards").mkdir()
    (folder / "shards" / "w.jsonl").write_text('{"schema":1,"kind":"game","key":"to')
    app = open_page("replay", tmp_path, **PLACE)
    assert list(app.selectbox[2].options) == [KEY, "bb22"]


def test_games_that_come_later_are_seen(tmp_path):
    run = write_run(tmp_path / "run", config=CONFIG, records={"001/targets": [{"kind": "target"}]})
    assert "no games yet" in words(open_page("replay", tmp_path))
    shards = run / "iterations" / "002" / "rollout" / "shards"
    shards.mkdir(parents=True)
    (shards / "w.jsonl").write_text(json.dumps({"schema": 1, **PLAYED}) + "\n")
    app = open_page("replay", tmp_path)
    assert params(app) == {"run": "run", "stage": "002/rollout", "game": KEY}
    with open(shards / "w.jsonl", "a") as file:
        file.write(json.dumps({"schema": 1, **PLAYED, "key": "cc33"}) + "\n")
    assert list(draw(app).selectbox[2].options) == [KEY, "cc33"]


def test_a_game_that_cannot_be_replayed_says_why(tmp_path):
    write_run(tmp_path / "run", config=CONFIG, records={"001/rollout": [{**PLAYED, "actions": [4, 4]}]})
    app = open_page("replay", tmp_path, **PLACE)
    assert "shown up to move 1" in words(app)


def test_a_game_whose_game_is_unknown_is_refused(tmp_path):
    write_run(tmp_path / "run", config=CONFIG, records={"001/rollout": [{**PLAYED, "game": "chess<b>"}]})
    app = open_page("replay", tmp_path, **PLACE)
    assert "cannot be shown" in app.error[0].value
    assert "<b>" not in app.error[0].value.replace("\\<b\\>", "")


@pytest.mark.parametrize("name", ["frozen_lake", "maze", "breakthrough"])
def test_every_game_is_shown(tmp_path, name):
    game = make(name, **({"rows": 5, "columns": 5} if name == "breakthrough" else {}))
    state, actions, outcomes = game.initial_states()[0], [], []
    for _ in range(3):
        actions.append(game.legal_actions(state)[0])
        outcomes.append(0)
        state = game.transitions(state, actions[-1])[0].state
    record = {
        "kind": "game",
        "key": KEY,
        "game": game.spec,
        "start": game.to_text(game.initial_states()[0]),
        "seat": 0,
        "actions": actions,
        "outcomes": outcomes,
        "result": "cut",
        "turns": [],
    }
    write_run(tmp_path / "run", config=CONFIG, records={"001/rollout": [record]})
    app = open_page("replay", tmp_path, **PLACE, ply="2")
    assert not app.error
    assert len(app.dataframe[1].value) == 4


def test_a_target_shows_the_moves_and_the_evaluation_that_g2_was_given(tmp_path):
    fused = [{"played": "O5 X2, then open", "successor": f"level {EVIL}"}]
    target = {**TARGETS[0], "evidence": "outlooks", "samples": ["level"], "fused": fused}
    write_run(tmp_path / "run", config=CONFIG, records={**STAGES, "001/targets": [target]})
    app = open_page("replay", tmp_path, **PLACE)
    assert f"O5 X2, then open\nlevel {EVIL}" in [block.value for block in app.code]

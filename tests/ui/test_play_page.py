from __future__ import annotations

import os

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.orchestration.frozen import Source
from nlrl.testing import ScriptedModel
from nlrl.ui import speakers as talk
from nlrl.ui.playing import LiveGame, played_folder, save, slug
from nlrl.ui.replay import load_replay
from nlrl.ui.said import POSITION
from nlrl.ui.speakers import Opened, Speaker, open_speaker

from .replayed import EVIL, draw, open_page, words, write_played

GAME = make("tictactoe")
RULES = "by rules (scripted)"


@pytest.fixture(scope="module")
def by_rules() -> Opened:
    return open_speaker(Speaker(RULES, Source(talk.RULES), scripted=True))


def says(by_rules, *answers) -> Opened:
    model = ScriptedModel(list(answers))
    return Opened(model, model, model, "plain", 400, by_rules.config)


def finished(by_rules) -> LiveGame:
    live = LiveGame(GAME, person=0, evaluate=False)
    agent = says(by_rules, "best_move: 4", "best_move: 5")
    for action in (0, 1, 2):
        live.move(action)
        if not live.is_over:
            live.answer(agent)
    return live


def test_a_persons_game_is_a_record_like_any_other(by_rules, tmp_path):
    place = save(tmp_path, finished(by_rules), "Rules <b>", by_rules)
    replay = load_replay(tmp_path / place.run, place.stage, place.game)
    assert [ply.move for ply in replay.plies] == ["1", "4", "2", "5", "3", ""]
    assert replay.title(0) == "Move 1, O (person): 1"
    assert replay.title(1) == "Move 2, X (policy): 4"
    assert replay.result == "loss for X"
    assert replay.plies[1].turn["reply"] == "best_move: 4"
    assert replay.plies[1].turn["weights"] == "scripted-0"
    assert place.run == "played/tictactoe-rules-b"


def test_further_games_are_added_and_nothing_is_committed(by_rules, tmp_path):
    first, second = (save(tmp_path, finished(by_rules), "x", by_rules) for _ in range(2))
    assert first.run == second.run
    assert first.game != second.game
    stage = tmp_path / first.run / "iterations" / "001" / "play"
    assert not (stage / "manifest.json").exists()
    assert len((stage / "shards" / "games.jsonl").read_text().splitlines()) == 2


def test_what_the_agent_thinks_is_kept_with_its_move(by_rules, tmp_path):
    live = LiveGame(GAME, person=1)
    live.answer(says(by_rules, "best_move: 1", "Fine. final_evaluation: +0.30"))
    live.move(3)
    live.answer(says(by_rules, EVIL, EVIL, "final_evaluation: +9", EVIL))
    assert live.is_over
    assert live.play.result(GAME) == "forfeit"
    place = save(tmp_path, live, "x", by_rules)
    replay = load_replay(tmp_path / place.run, place.stage, place.game)
    assert replay.plies[0].said[POSITION].verdict == 0.3
    assert replay.plies[2].judgement.label == "no legal move"
    assert replay.plies[2].turn["failures"] == ["missing", "missing"]


def test_moves_out_of_turn_and_illegal_ones_are_refused(by_rules, tmp_path):
    live = LiveGame(GAME, person=0)
    with pytest.raises(NLRLError, match="not the agent's turn"):
        live.answer(by_rules)
    with pytest.raises(NLRLError, match="no legal move"):
        live.move(99)
    live.move(0)
    with pytest.raises(NLRLError, match="not your turn"):
        live.move(1)
    with pytest.raises(NLRLError, match="not over"):
        save(tmp_path, live, "x", by_rules)
    with pytest.raises(NLRLError, match="not a seat"):
        LiveGame(GAME, person=2)


def test_a_walk_of_the_agent_alone_goes_on_after_a_lost_step(by_rules):
    maze = make("maze")
    live = LiveGame(maze, person=None, evaluate=False)
    live.answer(says(by_rules, "no", "no"))
    assert not live.is_over
    assert live.play.actions == [-1]
    assert live.ply == 1


def test_nothing_is_written_into_a_run(by_rules, tmp_path):
    run = write_played(tmp_path / "runs" / "run")
    before = sorted(path for path in run.rglob("*"))
    assert played_folder(run) == (tmp_path / "runs").resolve() / "played"
    place = save(run, finished(by_rules), "x", by_rules)
    assert place.run == ""
    assert sorted(path for path in run.rglob("*")) == before


def test_where_nothing_can_be_written_it_says_so(by_rules, tmp_path):
    (tmp_path / "played").write_text("a file")
    with pytest.raises(NLRLError, match="cannot be"):
        save(tmp_path, finished(by_rules), "x", by_rules)


@pytest.mark.parametrize("label", ["", "../..", "a/b", "<b>", "é", "x" * 300])
def test_a_folders_name_is_made_of_plain_words(label):
    assert slug(label).replace("-", "a").isalnum()
    assert len(slug(label)) <= 80


# -- the page ----------------------------------------------------------------------------------------------------------
def start(folder, **radios):
    app = open_page("play", folder)
    app.selectbox(key="play agent").set_value(RULES)
    for key, value in radios.items():
        app.radio(key=key.replace("_", " ")).set_value(value)
    app.button(key="play start").click()
    return draw(app)


def newest(app):
    return next(one.label for one in app.expander if one.label.startswith("Move"))


def move(app):
    app.button(key="play it").click()
    return draw(app)


def test_a_game_is_played_to_its_end_and_kept(tmp_path):
    app = start(tmp_path)
    for _ in range(5):
        if not any(button.key == "play it" for button in app.button):
            break
        move(app)
    (ended,) = [element.value for element in app.success]
    assert ended in ("You win.", "You lose.", "A draw.")
    shards = list((tmp_path / "played").rglob("*.jsonl"))
    assert len(shards) == 1
    draw(app)
    assert len(shards[0].read_text().splitlines()) == 1  # kept once, however often it is drawn
    app.button(key="new game").click()
    draw(app)
    assert app.button(key="play start")


def test_the_agents_argument_is_shown_before_or_after_the_persons_move(tmp_path):
    before = start(tmp_path, play_seat="X", play_when="before my move")
    assert newest(before).startswith("Move 1: ")
    assert any("best_move" in code.value for code in before.code)
    after = start(tmp_path, play_seat="X", play_when="after my move")
    assert "is shown after yours" in words(after)
    assert not any("best_move" in code.value for code in after.code)
    move(after)
    assert newest(after).startswith("Move 1: ")


def test_a_person_may_watch_an_agent_walk(tmp_path):
    app = open_page("play", tmp_path)
    app.text_input(key="play game").set_value("maze")
    draw(app)
    assert app.radio(key="play seat").options == ["I walk", "the agent"]
    app.button(key="play start").click()
    draw(app)
    assert app.button(key="play it")


def test_a_game_that_is_none_is_named(tmp_path):
    app = open_page("play", tmp_path)
    app.text_input(key="play game").set_value("<script>")
    draw(app)
    assert "<script" not in words(app).replace("\\<script", "")
    assert not any(button.key == "play start" for button in app.button)
    assert not os.listdir(tmp_path)

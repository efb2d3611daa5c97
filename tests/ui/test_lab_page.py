from __future__ import annotations

import json

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.orchestration.config import ModelConfig
from nlrl.orchestration.frozen import Source
from nlrl.orchestration.trainer import WEIGHTS_FILE
from nlrl.ui import speakers as talk
from nlrl.ui.backup import Question, back_up
from nlrl.ui.positions import read_position
from nlrl.ui.speakers import Opened, Speaker, ask_in_role, open_speaker, open_voices, speakers

from .replayed import EVIL, GAME, KEY, draw, open_page, words, write_played

RULES = "by rules (scripted)"
START = GAME.initial_states()[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    write_played(folder / "run")
    return folder


@pytest.fixture(scope="module")
def by_rules() -> Opened:
    return open_speaker(Speaker(RULES, Source(talk.RULES), scripted=True))


# -- agents ------------------------------------------------------------------------------------------------------------
def test_agents_are_bundled_models_runs_and_their_iterations(tmp_path):
    run = write_played(tmp_path / "run")
    for iteration in ("001", "002"):
        stage = run / "iterations" / iteration / "actor"
        stage.mkdir(parents=True)
        (stage / "manifest.json").write_text("{}")
    found = list(speakers(tmp_path, "tictactoe"))
    assert "transformer-base" in found
    assert [name for name in found if name.startswith("run")] == ["run, iteration 2", "run, iteration 1"]
    assert found[-1] == RULES
    (run / "agent").mkdir()
    assert "run" in speakers(tmp_path, "tictactoe")
    others = speakers(tmp_path, "maze")
    assert RULES not in others
    assert not [name for name in others if name.startswith("run")]  # trained on another game


@pytest.mark.parametrize("role", ["policy", "V", "Q"])
def test_an_agent_answers_in_a_role(by_rules, role):
    answer = ask_in_role(by_rules, GAME, role, START, action=4)
    assert answer.text
    assert bool(answer.move) == (role == "policy")
    assert (answer.verdict is None) == (role == "policy")
    assert answer.weights == "by-rules@0"
    assert answer.prompt
    assert all(claim.true for claim in answer.claims)


def test_what_cannot_be_asked_is_refused(by_rules):
    with pytest.raises(NLRLError, match="choose one"):
        ask_in_role(by_rules, GAME, "Q", START)
    over = read_position(GAME, "1 4 2 5 3").state
    with pytest.raises(NLRLError, match="over"):
        ask_in_role(by_rules, GAME, "policy", over)
    with pytest.raises(NLRLError, match="over"):
        next(back_up(GAME, Question(over), by_rules, by_rules))


def test_a_runs_actor_and_critic_speak_with_their_own_weights(by_rules, tmp_path):
    run = write_played(tmp_path / "run")
    taught = {"actor": ("policy", "Mine.\nbest_move: 7"), "critic": ("V", "Bad.\nfinal_evaluation: -0.75")}
    for part, (role, text) in taught.items():
        stage = run / "iterations" / "001" / part
        stage.mkdir(parents=True)
        (stage / "manifest.json").write_text("{}")
        prompt = ask_in_role(by_rules, GAME, role, START).prompt[-1].content
        (stage / WEIGHTS_FILE).write_text(json.dumps({prompt: text}))
    opened = open_speaker(Speaker("run, iteration 1", Source(str(run), 1)))
    said, thought = (ask_in_role(opened, GAME, role, START) for role in ("policy", "V"))
    assert (said.move, said.weights) == ("7", "actor@1")
    assert (thought.verdict, thought.weights) == (-0.75, "critic@1")
    assert opened.base.weight_version == "by-rules@0"


# -- backups -----------------------------------------------------------------------------------------------------------
def test_whole_games_are_told_and_merged(by_rules):
    events = list(back_up(GAME, Question(START, 4, continuations=3), by_rules, by_rules))
    assert [event.step for event in events] == ["game"] * 3 + ["G1"]
    assert all(event.text.startswith("O5 ") for event in events[:3])
    scores = [event.verdict for event in events[:3]]
    assert events[-1].verdict == pytest.approx(sum(scores) / 3, abs=0.01)  # rules count


def test_look_aheads_end_in_v_and_g2(by_rules):
    events = list(back_up(GAME, Question(START, None, "first-move", 2, lookahead=2), by_rules, by_rules))
    assert [event.step for event in events] == ["look-ahead", "V", "G2"] * 2 + ["G1"]
    assert events[1].verdict is not None
    assert f"{events[1].verdict:+.2f}" in events[2].text  # G2 carries what V says over, from the mover's view


def test_a_look_ahead_that_ends_the_game_needs_no_v(by_rules):
    state = read_position(GAME, "1 4 2 5").state
    events = list(back_up(GAME, Question(state, 2, continuations=1, lookahead=2), by_rules, by_rules))
    assert [event.step for event in events] == ["look-ahead", "G2", "G1"]
    assert events[-1].verdict == 1.0


def test_equal_seeds_give_equal_backups(by_rules):
    one, two, other = (
        [event.text for event in back_up(GAME, Question(START, seed=seed), by_rules, by_rules)] for seed in (1, 1, 2)
    )
    assert one == two != other


def test_a_walk_is_backed_up_too():
    game = make("frozen_lake", layout="SFF/FHF/FFG")
    agent = open_voices(ModelConfig(kind="scripted", name="nlrl.testing.by_game_rules", options={"game": game.spec}))
    events = list(back_up(game, Question(game.initial_states()[0], continuations=2), agent, agent))
    assert [event.step for event in events] == ["game", "game", "G1"]


# -- the page ----------------------------------------------------------------------------------------------------------
def ask(app, **values):
    for key, value in values.items():
        app.selectbox(key=key.replace("_", " ")).set_value(value)
    app.button(key="lab ask").click()
    return draw(app)


def test_a_position_is_set_up_and_branched(folder):
    app = open_page("lab", folder)
    app.text_area(key="lab text").set_value("5 1")
    draw(app)
    assert len(app.dataframe[0].value) == 7
    app.selectbox(key="lab move").set_value(8)
    next(button for button in app.button if button.label == "Try it").click()
    draw(app)
    assert "Tried: 5 1 9" in words(app)
    assert len(app.dataframe[0].value) == 6
    next(button for button in app.button if button.label == "Take back").click()
    draw(app)
    assert len(app.dataframe[0].value) == 7


def test_an_address_brings_a_replays_position(folder):
    app = open_page("lab", folder, run="run", stage="001/rollout", game=KEY, ply="2")
    assert app.text_area(key="lab text").value == GAME.to_text(read_position(GAME, "5 2").state)


@pytest.mark.parametrize("key", ["none", "<script>"])
def test_an_address_of_nothing_begins_at_the_start(folder, key):
    app = open_page("lab", folder, run="run", stage="001/rollout", game=key)
    assert "names no position" in words(app)
    assert len(app.dataframe[0].value) == 9


def test_bad_games_and_positions_are_named(folder):
    app = open_page("lab", folder)
    app.text_area(key="lab text").set_value(EVIL)
    draw(app)
    assert "no legal move" in app.error[0].value
    assert "<script" not in words(app).replace("\\<script", "")
    app.text_input(key="lab game").set_value("chess")
    draw(app)
    assert "unknown game" in app.error[0].value


def test_two_agents_answer_side_by_side_with_the_difference(folder):
    app = ask(open_page("lab", folder), lab_one=RULES, lab_other=RULES)
    assert len([code for code in app.code if "best_move" in code.value]) == 2
    assert "Word by word" in words(app)
    (html,) = [element for element in app.get("html")]
    assert "<span>" in html.proto.body
    app.text_area(key="lab text").set_value("5")
    draw(app)
    assert "Word by word" not in words(app)  # answers are about the position that was asked about


def test_a_backup_is_shown_step_by_step(folder):
    app = open_page("lab", folder)
    for key in ("lab player", "lab teacher"):
        app.selectbox(key=key).set_value(RULES)
    app.slider(key="lab k").set_value(2)
    app.button(key="lab back up").click()
    draw(app)
    steps = [caption.value for caption in app.caption if caption.value[:2] in ("1.", "2.", "G1")]
    assert [step.partition(":")[0] for step in steps] == ["1. game", "2. game", "G1"]


def test_an_unknown_opponent_is_refused(folder):
    app = open_page("lab", folder)
    for key in ("lab player", "lab teacher"):
        app.selectbox(key=key).set_value(RULES)
    app.text_input(key="lab opponent").set_value("kasparov")
    app.button(key="lab back up").click()
    draw(app)
    assert "unknown opponent" in app.error[0].value


def test_where_the_game_is_over_nothing_is_asked(folder):
    app = open_page("lab", folder)
    app.text_area(key="lab text").set_value("1 4 2 5 3")
    draw(app)
    assert "The game is over here." in words(app)
    assert not [button for button in app.button if button.key == "lab ask"]


def test_chance_is_chosen_by_the_person(folder):
    app = open_page("lab", folder)
    app.text_input(key="lab game").set_value("frozen_lake(slippery=True)")
    draw(app)
    (chance,) = [one for one in app.selectbox if one.label == "Chance chooses"]
    assert len(chance.options) == len(
        make("frozen_lake", slippery=True).transitions(make("frozen_lake", slippery=True).initial_states()[0], 0)
    )

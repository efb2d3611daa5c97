from __future__ import annotations

import pytest

from nlrl.envs.random import Rng
from nlrl.envs.testing import check_game
from nlrl.errors import NLRLError
from nlrl.testing import ScriptedGame

FORK = {"start": {"left": "trap", "right": ("hall", 0.25)}, "hall": {"wait": "exit"}, "trap": -1.0, "exit": 1.0}
DUEL = {"a": {"x": "b", "y": "c"}, "b": {"x": "lost", "z": "won"}, "c": {"y": "won"}, "won": 1.0, "lost": -1.0}
COIN = {"toss": {"flip": [(0.25, "heads", 2.0), (0.75, "tails")]}, "heads": 0.0, "tails": 0.0}


@pytest.mark.parametrize(
    ("script", "players"), [(FORK, 1), (DUEL, 2), (COIN, 1), ({"only": {"go": "end"}, "end": 3}, 1)]
)
def test_a_scripted_game_keeps_every_promise_of_game(script, players):
    check_game(lambda: ScriptedGame(script, players))


def test_a_line_pays_its_rewards_in_order():
    game = ScriptedGame.line(["one", "two", "three"], rewards=[0.5, 2.0])
    state, paid = game.initial_state(Rng(0)), []
    while not game.is_terminal(state):
        step = game.apply(state, game.legal_actions(state)[0])
        paid.append(step.rewards)
        state = step.state
    assert paid == [(0.5,), (2.0,)]
    assert (game.max_length, game.value_range) == (2, (-2.5, 2.5))
    check_game(lambda: ScriptedGame.line(["one", "two", "three"], rewards=[0.5, 2.0]))


def test_reward_and_final_value_are_paid_together():
    game = ScriptedGame({"a": {"go": ("b", 0.5)}, "b": 1.0})
    assert game.apply("a", 0).rewards == (1.5,)
    assert game.returns("b") == (1.0,)


def test_two_players_alternate_and_the_value_is_the_first_players():
    game = ScriptedGame(DUEL, players=2)
    assert [game.current_player(state) for state in DUEL] == [0, 1, 1, -1, -1]
    lose = game.parse_action("b", "x")
    assert lose is not None
    assert game.apply("b", lose).rewards == (-1.0, 1.0)


def test_chance_has_the_script_s_frequencies():
    game = ScriptedGame(COIN)
    heads = sum(game.apply("toss", 0, Rng("coin", n)).state == "heads" for n in range(2000))
    assert 420 <= heads <= 580


@pytest.mark.parametrize(
    ("script", "players", "message"),
    [
        ({}, 1, "needs"),
        ({"a": 0.0}, 3, "1 or 2 players"),
        ({"a": {"go": "nowhere"}}, 1, "'nowhere', which it does not have"),
        ({"a": {}}, 1, "'a' of the script has no moves"),
        ({"a": {"go": "b"}, "b": {"back": "a"}}, 1, "comes back to state 'a'"),
        ({"a": 0.0, "island": 1.0}, 1, "'island' of the script is never reached"),
        ({"a": {"go": [(0.5, "b")]}, "b": 0.0}, 1, "do not sum to 1"),
        ({"a": {"go": ("b", 1.0)}, "b": 0.0}, 2, "has a reward"),
        ({"a": {"x": "b", "y": "c"}, "b": {"x": "c"}, "c": {"x": "d"}, "d": 0.0}, 2, "both players come to state 'c'"),
    ],
)
def test_a_script_that_is_no_game_is_refused_by_name(script, players, message):
    with pytest.raises(NLRLError, match=message):
        ScriptedGame(script, players)


def test_the_picture_shows_candidates_and_escapes_names():
    game = ScriptedGame({"<a>": {"go & stay": "b"}, "b": 0.0})
    svg = game.render_svg("<a>", arrows={0: 0.5}, marks={0: "!?"})
    assert "&lt;a&gt;" in svg
    assert "go &amp; stay 0.5 !?" in svg

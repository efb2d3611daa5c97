"""What a Gymnasium environment of ours does with illegal actions, and with arguments that cannot be."""

import pickle
import random
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from nlrl.envs.adapters.gymnasium import GameEnv
from nlrl.envs.tictactoe import TicTacToe
from nlrl.errors import GameError, NLRLError


# -- illegal actions ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seat", [0, 1])
@pytest.mark.parametrize("name", ["tictactoe", "breakthrough"])
def test_an_illegal_action_forfeits_a_board_game(name, seat):
    env = GameEnv(name, seat=seat)
    _, info = env.reset(seed=0)
    illegal = int(np.flatnonzero(info["action_mask"] == 0)[0]) if not info["action_mask"].all() else 99
    _, reward, terminated, truncated, info = env.step(illegal)
    assert (reward, terminated, truncated, info["illegal"]) == (-1.0, True, False, True)
    assert not info["action_mask"].any()


def test_a_reply_that_names_no_move_costs_a_walker_four():
    env = GameEnv("maze", actions="text")
    _, before = env.reset(seed=0)
    _, reward, *over, info = env.step("I would go left")
    assert (reward, over, info["illegal"], info["text"]) == (-4.0, [False, False], True, before["text"])
    assert env.step(" move left\n")[1] == -1.0
    assert env.step(" move left\n")[4]["illegal"] is False


@pytest.mark.parametrize(("actions", "wrong"), [("index", 4), ("text", "X")])
def test_an_illegal_action_can_raise_and_then_changes_nothing(actions, wrong):
    env = GameEnv("tictactoe", actions=actions, illegal="raise")
    env.reset(options={"text": " 1 | 2 | 3\n---+---+---\n 4 | O | 6\n---+---+---\n X | 8 | 9"})
    before = env.position
    with pytest.raises(ValueError, match=r"legal: 0 \(1\), 1 \(2\)"):
        env.step(wrong)
    assert env.position is before


# -- arguments ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seat": 2}, "seat"),
        ({"seat": True}, "seat"),
        ({"opponent": "nobody"}, "unknown opponent"),
        ({"observation": "sound"}, "observation"),
        ({"actions": "words"}, "actions"),
        ({"illegal": "ignore"}, "illegal"),
        ({"render_mode": "human"}, "render_mode"),
        ({"rows": 3}, "no parameter 'rows'"),
    ],
)
def test_arguments_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(NLRLError, match=message):
        GameEnv("tictactoe", **wrong)


def test_a_game_of_ones_own_is_played_as_it_is():
    own = type("Own", (TicTacToe,), {"name": "test_of_gymnasium"})()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*due to the environment not having a spec.*")
        check_env(GameEnv(own), skip_render_check=True)
    env = GameEnv(own)
    obs, info = env.reset(seed=0)
    assert bytes(obs[0][obs[0] != 0]).decode().rstrip() == info["text"].split("\n")[0]
    with pytest.raises(GameError, match="rows"):
        GameEnv(own, rows=3)


@pytest.mark.parametrize(
    "options",
    [{"board": ""}, {"text": "nonsense"}, {"text": " O | O | O\n---+---+---\n X | X | 6\n---+---+---\n 7 | 8 | 9"}],
)
def test_a_game_cannot_start_from_a_board_that_is_none_or_over(options):
    with pytest.raises(ValueError, match=r"board|over"):
        GameEnv("tictactoe").reset(options=options)


def test_render_gives_text_and_pictures():
    for mode, start in (("ansi", " 1 | 2"), ("svg", "<svg")):
        env = gymnasium.make("nlrl/TicTacToe-v0", render_mode=mode)
        env.reset(seed=0)
        assert env.render().startswith(start)


def test_environments_can_be_sent_to_other_processes():
    env = GameEnv("breakthrough", opponent="epsilon(0.5,first-move)")
    env.reset(seed=1)
    copy = pickle.loads(pickle.dumps(env))
    for one in (env, copy):
        one.reset(seed=3)
    rng, over = random.Random(0), False
    while not over:
        action = rng.choice(env.game.legal_actions(env.position.state))
        over = env.step(action)[2]
        copy.step(action)
        assert copy.position == env.position

"""Our games in PettingZoo: its tests pass, and games played through it are ours."""

import warnings
from functools import partial

import numpy as np
import pytest
from pettingzoo.test import api_test, seed_test
from pettingzoo.test.render_test import collect_render_results

from nlrl import envs
from nlrl.envs import Rng, to_pettingzoo
from nlrl.envs.tictactoe import TicTacToe
from nlrl.errors import GameError

SPECS = (
    "tictactoe",
    "breakthrough",
    "breakthrough(rows=4,columns=6)",
    "maze",
    "maze(layout=umaze,observed=partial)",
    "frozen_lake",
    "frozen_lake(layout=random,maps=4,slippery=False)",
)
UNAVOIDABLE = (
    "Observation is not a NumPy array",  # with a mask it is a dictionary; PettingZoo exempts only its own games,
    "Observation space for each agent probably should be",  # by name
)


@pytest.fixture(params=SPECS)
def game(request):
    return envs.make_from_spec(request.param)


# -- PettingZoo's own tests --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("illegal", ["raise", "forfeit"])
def test_the_api_test_passes(game, illegal, capsys):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        api_test(to_pettingzoo(game, illegal=illegal), num_cycles=200)
    assert not [str(w.message) for w in caught if not str(w.message).startswith(UNAVOIDABLE)]


def test_the_seed_test_passes(game):
    seed_test(lambda: to_pettingzoo(game), num_cycles=200)


@pytest.mark.parametrize("mode", ["ansi", "svg"])
def test_every_position_can_be_rendered(game, mode, monkeypatch):
    env = to_pettingzoo(game, render_mode=mode)
    monkeypatch.setattr(env, "reset", partial(env.reset, seed=3))
    for agent in env.possible_agents:
        env.action_space(agent).seed(7)  # a few steps into a wall would leave one picture
    pictures = collect_render_results(env)
    assert env.metadata["render_modes"] == ["ansi", "svg"]
    assert all(picture.startswith("<svg") == (mode == "svg") for picture in pictures)
    assert len(set(pictures)) > 1


# -- the same games ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_random_games_are_games_by_our_rules(game, seed):
    env, rng = to_pettingzoo(game), Rng("pettingzoo", seed)
    env.reset(seed=seed)
    state, totals, heard = env.position.state, dict.fromkeys(env.agents, 0.0), dict.fromkeys(env.agents, 0.0)
    assert state in game.initial_states()
    for agent in env.agent_iter():
        observation, reward, terminated, truncated, info = env.last()
        heard[agent] += reward
        if terminated or truncated:
            assert not observation["action_mask"].any()
            env.step(None)
            continue
        player = env.possible_agents.index(agent)
        assert player == game.current_player(state)
        assert tuple(np.flatnonzero(observation["action_mask"])) == game.legal_actions(state)
        assert info["text"] == game.observation_text(state, player)
        action = rng.choice(game.legal_actions(state))
        outcomes = {step.state: step.rewards for step in game.transitions(state, action)}
        env.step(action)
        state = env.position.state
        extra = game.truncation_reward * env.truncations[agent]
        assert tuple(env.rewards.values()) == tuple(paid + extra for paid in outcomes[state])
        assert set(env.terminations.values()) == {game.is_terminal(state)}
        for other, paid in env.rewards.items():
            totals[other] += paid
    assert heard == totals
    assert game.is_terminal(state) != env.position.truncated


def test_agents_see_themselves_first():
    env = to_pettingzoo(TicTacToe())
    env.reset()
    env.step(4)
    first, second = env.observe("player_0"), env.observe("player_1")
    assert np.array_equal(first["observation"][0], second["observation"][1])
    assert first["observation"][0].sum() == 1
    assert not first["action_mask"].any()
    assert second["action_mask"].sum() == 8


def test_equal_seeds_give_equal_chance_and_no_seed_goes_on():
    env, other = to_pettingzoo(envs.make("maze")), to_pettingzoo(envs.make("maze"))

    def starts(of, seed):
        of.reset(seed=seed)
        drawn = [of.position.state]
        for _ in range(20):
            of.reset()
            drawn.append(of.position.state)
        return drawn

    assert starts(env, 1) == starts(other, 1)
    assert len(set(starts(env, 2))) > 5


def test_the_cap_truncates_and_does_not_terminate():
    env = to_pettingzoo(envs.make("maze", max_steps=3))
    env.reset(seed=0)
    for _ in range(3):
        assert not env.truncations["player_0"]
        env.step(int(np.argmin([s.rewards for a in range(4) for s in env.game.transitions(env.position.state, a)])))
    assert env.truncations["player_0"]
    assert not env.terminations["player_0"]
    assert env.rewards["player_0"] == -2.0


# -- illegal actions and arguments -------------------------------------------------------------------------------------
def test_an_illegal_action_raises_and_changes_nothing():
    env = to_pettingzoo(TicTacToe())
    env.reset()
    env.step(4)
    before = env.position
    with pytest.raises(ValueError, match=r"action 4 of player_1 is illegal; legal: \(0, 1, 2, 3, 5"):
        env.step(4)
    assert env.position is before
    assert env.agent_selection == "player_1"


def test_an_illegal_action_can_forfeit():
    env = to_pettingzoo(TicTacToe(), illegal="forfeit")
    env.reset()
    env.step(4)
    env.step(4)
    assert env.rewards == {"player_0": 1.0, "player_1": -1.0}
    assert env.terminations == {"player_0": True, "player_1": True}
    walker = to_pettingzoo(envs.make("maze"), illegal="forfeit")
    walker.reset(seed=0)
    walker.step(99)
    assert walker.rewards == {"player_0": -4.0}
    assert not walker.terminations["player_0"]


@pytest.mark.parametrize("wrong", [{"illegal": "ignore"}, {"render_mode": "human"}])
def test_arguments_that_cannot_be_are_refused(wrong):
    with pytest.raises(GameError, match=next(iter(wrong))):
        to_pettingzoo(TicTacToe(), **wrong)


def test_a_game_of_ones_own_is_played_as_it_is():
    own = type("Own", (TicTacToe,), {"name": "test_of_pettingzoo"})()
    env = to_pettingzoo(own)
    env.reset()
    shown = env.observe("player_0")["observation"]
    assert [bytes(row).decode().rstrip() for row in shown] == own.to_text(own.initial_states()[0]).split("\n")

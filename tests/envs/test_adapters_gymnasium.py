"""Our games in Gymnasium: its checker is content, and games played through it are ours."""

import random
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from nlrl import envs
from nlrl.envs.adapters.gymnasium import IDS, GameEnv
from nlrl.envs.tictactoe import TicTacToe

GAMES = (
    ("nlrl/TicTacToe-v0", {}),
    ("nlrl/Breakthrough-v0", {}),
    ("nlrl/Breakthrough-v0", {"rows": 4, "columns": 6}),
    ("nlrl/Maze-v0", {"layout": "double_t"}),
    ("nlrl/Maze-v0", {"layout": "umaze", "observed": "partial"}),
    ("nlrl/FrozenLake-v0", {}),
    ("nlrl/FrozenLake-v0", {"layout": "random", "maps": 4, "slippery": False}),
)
VARIANTS = ({}, {"observation": "text"}, {"actions": "text"}, {"seat": "random", "opponent": "first-move"})


def random_step(env, info, rng):
    return env.step(rng.choice(np.flatnonzero(info["action_mask"])))


def play(env, seed):
    """Everything that a random game gives, as comparable values."""
    rng, over = random.Random(seed), False
    obs, info = env.reset(seed=seed)
    record = [(np.array(obs).tolist(), info["text"], info["legal_moves"])]
    while not over:
        obs, reward, terminated, truncated, info = random_step(env, info, rng)
        record.append((np.array(obs).tolist(), reward, terminated, truncated, info["text"], info["legal_moves"]))
        over = terminated or truncated
    return record


# -- gymnasium's own tests ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("env_id", "params"), GAMES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_checker_has_nothing_to_say(env_id, params, variant):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gymnasium.make(env_id, **params, **variant)
        check_env(env.unwrapped)
        env.reset(seed=3)
        env.action_space.seed(3)
        for _ in range(30):  # under gymnasium's passive checker
            *_, terminated, truncated, _ = env.step(env.action_space.sample())
            if terminated or truncated:
                env.reset()


@pytest.mark.parametrize("env_id", IDS)
def test_environments_are_described_as_json(env_id):
    spec = gymnasium.envs.registration.EnvSpec.from_json(gymnasium.spec(env_id).to_json())
    assert gymnasium.make(spec).unwrapped.game.name == IDS[env_id]


@pytest.mark.parametrize(("env_id", "params"), GAMES)
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_the_last_observation_survives_autoreset(env_id, params, mode):
    vector = gymnasium.make_vec(env_id, 3, "sync", vector_kwargs={"autoreset_mode": mode}, **params)
    alone, rng = [gymnasium.make(env_id, **params) for _ in range(3)], random.Random(0)
    obs, infos = vector.reset(seed=5)
    own = [env.reset(seed=5 + i) for i, env in enumerate(alone)]
    assert all(np.array_equal(obs[i], own[i][0]) for i in range(3))
    ended: set[int] = set()
    for _ in range(130):
        actions = [rng.choice(np.flatnonzero(mask)) if mask.any() else 0 for mask in infos["action_mask"]]
        obs, rewards, terminated, truncated, infos = vector.step(np.array(actions))
        for i in set(range(3)) - ended:
            mine, reward, *over, info = alone[i].step(actions[i])
            assert (rewards[i], terminated[i], truncated[i]) == (reward, *over)
            last = mode is AutoresetMode.SAME_STEP and any(over)
            seen, told = (infos["final_obs"], infos["final_info"]) if last else (obs, infos)
            assert np.array_equal(seen[i], mine)
            assert told["text"][i] == info["text"]
            if any(over):
                ended.add(i)
        if len(ended) == 3:
            return
    raise AssertionError(f"only the games {ended} ended")


# -- seeds -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("env_id", "params"), GAMES)
def test_equal_seeds_give_equal_games_even_interleaved_and_no_global_generator_is_used(env_id, params):
    one, other = gymnasium.make(env_id, **params), gymnasium.make(env_id, **params)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first = play(one, 7)
    other.reset(seed=8)
    one.reset()
    assert play(other, 7) == first
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_without_a_seed_every_game_is_another():
    env = gymnasium.make("nlrl/Maze-v0")
    texts = [env.reset(seed=0)[1]["text"], *(env.reset()[1]["text"] for _ in range(20))]
    assert len(set(texts)) > 5
    again = [env.reset(seed=0)[1]["text"], *(env.reset()[1]["text"] for _ in range(20))]
    assert again == texts


def test_a_random_seat_is_drawn_from_the_seed():
    env = GameEnv("tictactoe", seat="random")
    seats = [env.reset(seed=seed)[1] and env.seat for seed in range(20)]
    assert set(seats) == {0, 1}
    assert seats == [env.reset(seed=seed)[1] and env.seat for seed in range(20)]


# -- the same games ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("env_id", ["nlrl/Maze-v0", "nlrl/FrozenLake-v0"])
def test_games_of_one_player_follow_the_rules(env_id):
    for seed in range(5):
        env, rng, total, over = gymnasium.make(env_id).unwrapped, random.Random(seed), 0.0, False
        _, info = env.reset(seed=seed)
        while not over:
            before, action = env.position.state, rng.choice(np.flatnonzero(info["action_mask"]))
            outcomes = [(step.state, step.rewards[0]) for step in env.game.transitions(before, int(action))]
            _, reward, terminated, truncated, info = env.step(action)
            over, total = terminated or truncated, total + reward
            assert (env.position.state, reward - truncated * env.game.truncation_reward) in outcomes
            assert terminated == env.game.is_terminal(env.position.state)
        assert total == pytest.approx(env.position.totals[0])


@pytest.mark.parametrize("seat", [0, 1])
@pytest.mark.parametrize("name", ["tictactoe", "breakthrough"])
def test_the_opponent_has_the_other_seat_and_rewards_are_the_agents(name, seat):
    results = set()
    for seed in range(25):
        env, rng, total, over = GameEnv(name, seat=seat), random.Random(seed), 0.0, False
        _, info = env.reset(seed=seed)
        assert env.position.played == seat
        while not over:
            assert env.game.current_player(env.position.state) == seat
            _, reward, over, truncated, info = random_step(env, info, rng)
            assert not truncated
            total += reward
        assert total == env.game.returns(env.position.state)[seat]
        results.add(total)
    assert results >= {1.0, -1.0}


def test_the_opponent_is_the_one_named():
    env = GameEnv("tictactoe", opponent="first-move", actions="text")
    env.reset(seed=0)
    *_, info = env.step("5")
    assert info["text"].startswith(" O | 2") is False
    assert info["text"].startswith(" X | 2")


def test_the_board_is_seen_from_the_agents_seat():
    board = envs.make("tictactoe").to_text(
        TicTacToe().parse_text(" O | 2 | X\n---+---+---\n 4 | O | 6\n---+---+---\n 7 | 8 | X")
    )
    first, second = GameEnv("tictactoe", seat=0), GameEnv("tictactoe", seat=1, opponent="first-move")
    obs, _ = first.reset(options={"text": board})
    assert obs[0].ravel().nonzero()[0].tolist() == [0, 4]
    assert obs[1].ravel().nonzero()[0].tolist() == [2, 8]
    assert obs[2].all()
    obs, _ = second.reset(options={"text": board})
    assert obs[0].ravel().nonzero()[0].tolist() == [2, 8]
    assert obs[1].ravel().nonzero()[0].tolist() == [0, 1, 4]
    assert not obs[2].any()


@pytest.mark.parametrize(
    ("game", "symbols", "cells"),
    [
        (
            "tictactoe",
            "OX",
            lambda text: [[part.strip() for part in line.split("|")] for line in text.split("\n")[::2]],
        ),
        ("breakthrough", "bw", lambda text: [line.split()[1:] for line in text.split("\n")[:5]]),
        ("maze", "@#G", lambda text: [list(line) for line in text.split("\n")]),
        ("frozen_lake", "POG", lambda text: [line.split() for line in text.split("\n")]),
    ],
)
def test_planes_show_what_the_board_shows(game, symbols, cells):
    env, rng = GameEnv(game, opponent="first-move", render_mode="ansi"), random.Random(0)
    for seed in range(3):
        obs, info = env.reset(seed=seed)
        while info["action_mask"].any():
            for plane, symbol in zip(obs, symbols, strict=False):
                assert plane.tolist() == [[cell == symbol for cell in row] for row in cells(env.render())]
            obs, *over, info = random_step(env, info, rng)
            if over[1] or over[2]:
                break


def test_a_partially_observed_maze_shows_no_more_than_its_text():
    env = GameEnv("maze", layout="umaze", observed="partial")
    seen: dict[str, set[bytes]] = {}
    for seed in range(40):
        obs, info = env.reset(seed=seed)
        seen.setdefault(info["text"], set()).add(obs.tobytes())
        for action in (0, 2, 1):
            obs, *_, info = env.step(action)
            seen.setdefault(info["text"], set()).add(obs.tobytes())
    assert len(seen) > 1
    assert all(len(arrays) == 1 for arrays in seen.values())


# -- ends --------------------------------------------------------------------------------------------------------------
def test_the_cap_truncates_and_does_not_terminate():
    env = gymnasium.make("nlrl/Maze-v0", max_steps=6)
    env.reset(seed=0, options={"text": envs.make("maze").to_text(envs.make("maze").initial_states()[0])})
    steps = [env.step(0)[1:4] for _ in range(6)]
    assert steps == [(-1.0, False, False)] * 5 + [(-2.0, False, True)]


def test_a_draw_is_terminated_and_not_truncated():
    env = GameEnv("tictactoe")
    env.reset(options={"text": " O | X | O\n---+---+---\n O | X | X\n---+---+---\n X | O | 9"})
    assert env.step(8)[1:4] == (0.0, True, False)


def test_a_game_that_is_over_wants_a_reset():
    env = GameEnv("maze", max_steps=1)
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)

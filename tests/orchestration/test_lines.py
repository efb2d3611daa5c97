"""What a record keeps of a game is enough to play it again, chance and lost moves included."""

from __future__ import annotations

import pytest

from nlrl.agents.language import NO_MOVE
from nlrl.envs import make
from nlrl.envs.random import Rng
from nlrl.orchestration.lines import kept, replay
from nlrl.orchestration.players import NONE, Play, move_or_forfeit
from nlrl.testing import ScriptedGame

LAKE = make("frozen_lake")


def walked(game, seed, actions=None):
    """A random walk, or one of given actions."""
    rng = Rng("walk", seed)
    walk = Play(game.initial_state(rng), 0, NONE, rng)
    start, plan = walk.state, iter(actions or ())
    while not walk.is_over(game):
        move_or_forfeit(game, walk, next(plan) if actions else rng.choice(game.legal_actions(walk.state)))
    return start, walk


@pytest.mark.parametrize("seed", range(20))
def test_a_walk_on_slippery_ice_is_replayed_as_it_went(seed):
    start, walk = walked(LAKE, seed)
    line = replay(LAKE, start, walk.actions, kept(walk.outcomes))
    assert line.end == walk.state
    assert len(line.states) == len(walk.actions) + 1
    for before, action, after in zip(line.states, line.actions, line.states[1:], strict=False):
        assert after in {step.state for step in LAKE.transitions(before, action)}


def test_walks_that_chance_took_elsewhere_differ_in_their_outcomes_alone():
    found = {}
    for seed in range(60):
        start, walk = walked(LAKE, seed, actions=[2] * 10)
        found[tuple(replay(LAKE, start, walk.actions, kept(walk.outcomes)).states)] = walk.actions
    assert len(found) > 10
    assert {action for actions in found.values() for action in actions} == {2}


def test_without_chance_nothing_is_kept():
    firm = make("frozen_lake", slippery=False)
    start, walk = walked(firm, 0)
    assert kept(walk.outcomes) is None
    assert replay(firm, start, walk.actions).end == walk.state


def test_outcomes_of_certain_steps_stand_between_those_of_chance():
    game = ScriptedGame({"a": {"go": "b"}, "b": {"go": [(0.5, "c"), (0.5, "d")]}, "c": {"go": "d"}, "d": 1.0})
    ends = {}
    for seed in range(20):
        start, walk = walked(game, seed)
        line = replay(game, start, walk.actions, kept(walk.outcomes))
        assert line.end == "d"
        ends[line.states] = kept(walk.outcomes)
    assert ends == {("a", "b", "c", "d"): (0, 0, 0), ("a", "b", "d"): (0, 1)}


def test_a_reply_without_a_move_costs_a_step_where_the_rules_say_so():
    maze = make("maze", layout="umaze")
    walk = Play(maze.initial_states()[0], 0, NONE, Rng(0))
    start = walk.state
    move_or_forfeit(maze, walk, None)
    move_or_forfeit(maze, walk, maze.parse_action(start, "move down"))
    assert walk.actions == [NO_MOVE, 3]
    assert walk.paid == -5
    assert walk.forfeited_by is None
    assert replay(maze, start, walk.actions).end == walk.state


def test_and_is_a_forfeit_elsewhere():
    start = LAKE.initial_states()[0]
    walk = Play(start, 0, NONE, Rng(0))
    move_or_forfeit(LAKE, walk, None)
    assert (walk.actions, walk.result(LAKE), walk.total(LAKE)) == ([], "forfeit", 0.0)
    with pytest.raises(ValueError, match="forfeit"):
        replay(LAKE, start, [NO_MOVE])


def test_results_of_walks_are_the_goal_its_miss_and_the_cut():
    maze = make("maze", layout="#####/#..G#/#####", max_steps=3)
    left, right = (maze.parse_action(maze.initial_states()[0], f"move {way}") for way in ("left", "right"))
    arrived, lost = Play((start := maze.initial_states()[0]), 0, NONE, Rng(0)), Play(start, 0, NONE, Rng(0))
    for _ in range(2):
        move_or_forfeit(maze, arrived, right)
    for _ in range(3):
        move_or_forfeit(maze, lost, left)
    assert (arrived.result(maze), arrived.total(maze)) == ("win", -1)
    assert (lost.is_over(maze), lost.result(maze), lost.total(maze)) == (True, "cut", -4)
    drowned = Play(LAKE.parse_text("S _ _ _\n_ X _ O\n_ _ _ O\nO _ _ G"), 0, NONE, Rng(0))
    assert drowned.result(LAKE) == "loss"

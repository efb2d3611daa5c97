"""Sets of positions: the same ones every time, without doubles, split as promised, kept once made."""

from __future__ import annotations

import json

import pytest

from nlrl.envs import make_from_spec
from nlrl.errors import NLRLError
from nlrl.orchestration import state_sets
from nlrl.orchestration.state_sets import (
    PAPER_PLAYERS,
    StateSetConfig,
    exact_values,
    mcts_grid,
    set_hash,
    state_set,
)

SPEC = "breakthrough(rows=5,columns=5)"
SMALL = StateSetConfig(players=("random", "mcts(4,1)"), games_per_pair=8, held_out=60)


def names(states):
    return [tuple(state) for state in states]


def test_a_set_has_no_doubles_and_no_finished_games_and_splits_them(tmp_path):
    found = state_set(SPEC, SMALL, tmp_path)
    every = [*found.held_out, *found.train]
    assert len(found.held_out) == 60
    assert len(set(every)) == len(every) > 200
    assert not any(found.game.is_terminal(state) for state in every)
    assert found.games == 32
    assert found.plies >= len(every)
    assert {state.player for state in found.held_out} == {0, 1}
    pawns = [state.black.bit_count() + state.white.bit_count() for state in every]
    assert min(pawns) < 14 < max(pawns)


def test_equal_descriptions_are_equal_sets_and_others_are_not(tmp_path):
    first, again = (state_set(SPEC, SMALL, tmp_path / name) for name in ("a", "b"))
    assert first.path.read_bytes() == again.path.read_bytes()
    assert first[1:3] == again[1:3]
    for change in ({"seed": 1}, {"games_per_pair": 9}, {"players": ("random",)}):
        assert set_hash(first.game.spec, SMALL.model_copy(update=change)) not in first.path.name
    assert set_hash(make_from_spec("breakthrough(rows=4,columns=4)").spec, SMALL) not in first.path.name


@pytest.mark.slow  # starts processes
def test_workers_play_the_same_games(tmp_path):
    alone, together = (state_set(SPEC, SMALL, tmp_path / str(workers), workers) for workers in (1, 2))
    assert alone.path.read_bytes() == together.path.read_bytes()


def test_training_sets_are_parts_of_larger_ones_and_never_held_out(tmp_path):
    whole, small, smaller = (
        state_set(SPEC, SMALL.model_copy(update={"train": count}), tmp_path) for count in (None, 100, 40)
    )
    assert whole.path == small.path == smaller.path
    assert whole.held_out == small.held_out == smaller.held_out
    assert names(small.train) == names(whole.train[:100])
    assert names(smaller.train) == names(small.train[:40])
    assert not {*whole.train} & {*whole.held_out}
    other = state_set(SPEC, SMALL.model_copy(update={"split_seed": 1}), tmp_path)
    assert {*other.held_out} != {*whole.held_out}
    assert {*other.held_out, *other.train} == {*whole.held_out, *whole.train}


def test_a_set_that_is_there_is_read_back_and_not_played_again(tmp_path, monkeypatch):
    first = state_set(SPEC, SMALL, tmp_path)
    assert first.path.parent == tmp_path / "state_sets"
    monkeypatch.setattr(state_sets, "_played", lambda *_: pytest.fail("played again"))
    assert state_set(SPEC, SMALL, tmp_path)[1:] == first[1:]


def test_any_game_has_sets_and_exact_values(tmp_path):
    config = StateSetConfig(players=("random", "first-move"), games_per_pair=6, held_out=10)
    found = state_set("tictactoe", config, tmp_path)
    values = exact_values(found.game, found.held_out)
    assert len(values) == 10
    assert set(values) <= {-1.0, 0.0, 1.0}
    lake = state_set("frozen_lake", StateSetConfig(players=("random",), games_per_pair=40, held_out=2), tmp_path)
    assert len(lake.held_out) == 2


def test_values_of_positions_are_those_of_perfect_play(tmp_path):
    found = state_set(SPEC, SMALL, tmp_path)
    values = exact_values(found.game, found.held_out)
    assert set(values) == {-1.0, 1.0}
    for state, value in zip(found.held_out[:10], values, strict=False):
        after = [found.game.apply(state, action) for action in found.game.legal_actions(state)]
        best = max(step.rewards[state.player] or -exact_values(found.game, [step.state])[0] for step in after)
        assert best == value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"players": ("clever",)}, "unknown opponent 'clever'"),
        ({"held_out": 100_000}, r"which is not enough to hold out 100,000 and train on 1; raise games_per_pair"),
        ({"train": 50_000}, r"hold out 60 and train on 50,000"),
    ],
)
def test_a_set_that_cannot_be_is_refused_by_what_is_wrong(tmp_path, change, message):
    with pytest.raises(NLRLError, match=message):
        state_set(SPEC, SMALL.model_copy(update=change), tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    path = state_set(SPEC, SMALL, tmp_path).path
    path.write_text(json.dumps({"states": []}))
    with pytest.raises(NLRLError, match=rf"{path.name}: no readable set of positions .* delete it"):
        state_set(SPEC, SMALL, tmp_path)


def test_the_papers_players_are_twelve():
    assert len(PAPER_PLAYERS) == 12
    assert PAPER_PLAYERS[0] == "mcts(2,1)"
    assert PAPER_PLAYERS[-1] == "mcts(1000,100)"
    assert mcts_grid((2,), (1, 3)) == ("mcts(2,1)", "mcts(2,3)")

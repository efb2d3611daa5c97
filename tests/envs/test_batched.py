"""Games in batches: the same games as the scalar rules play, draw for draw."""

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nlrl.envs import make_from_spec
from nlrl.envs.batched import from_states, make_batched
from nlrl.envs.batched.streams import draw_below, make_streams
from nlrl.envs.game import Step
from nlrl.envs.random import Rng
from nlrl.envs.tictactoe import TicTacToe, TicTacToeState

BOARD_GAMES = [
    "tictactoe",
    "breakthrough",
    "breakthrough(rows=3,columns=3)",
    "breakthrough(rows=3,columns=8)",
    "breakthrough(rows=8,columns=3,pawn_rows=4)",
    "breakthrough(rows=5,columns=5,pawn_rows=1)",
    "breakthrough(rows=8,columns=8)",
]
WALKS = [
    "maze",
    "maze(max_steps=7)",
    "maze(observed=partial,history=9,max_steps=30)",  # too many states for a table
    "frozen_lake",
    "frozen_lake(layout=random,maps=20,slippery=False)",
    "frozen_lake(layout=random,maps=20)",
]
game_of = cache(make_from_spec)
every_game = pytest.mark.parametrize("spec", [*BOARD_GAMES, *WALKS])


class ScalarGame:
    """One game of a batch, played by the scalar rules and `Rng`."""

    def __init__(self, game, seed, index):
        self.game = game
        self.moves, self.chance = (Rng("batched", seed, index, purpose) for purpose in ("moves", "chance"))
        self.start()

    def start(self):
        self.state, self.length = self.game.initial_state(self.chance), 0

    def choose(self):
        return self.moves.choice(self.game.legal_actions(self.state))

    def step(self, action):
        """Rewards, terminated, truncated and the state, before a new game starts."""
        _, self.state, rewards = self.game.apply(self.state, action, self.chance)
        self.length += 1
        terminated = self.game.is_terminal(self.state)
        truncated = not terminated and self.length == self.game.max_length
        rewards = [reward + truncated * self.game.truncation_reward for reward in rewards]
        reached = self.state
        if terminated or truncated:
            self.start()
        return rewards, terminated, truncated, reached


def masks(batch):
    return [tuple(np.flatnonzero(row)) for row in batch.legal_mask()]


# -- equality with the scalar rules ------------------------------------------------------------------------------------
@every_game
def test_random_play_is_that_of_the_scalar_rules_step_by_step(spec):
    game, size, seed = game_of(spec), 7, 3
    batch, scalars = make_batched(game, size, seed), [ScalarGame(game, seed, i) for i in range(size)]
    ends = 0
    for _ in range(130):
        assert batch.states() == [scalar.state for scalar in scalars]
        assert masks(batch) == [game.legal_actions(scalar.state) for scalar in scalars]
        assert batch.current_players().tolist() == [game.current_player(scalar.state) for scalar in scalars]
        actions = batch.random_actions()
        assert actions.tolist() == [scalar.choose() for scalar in scalars]
        step = batch.step(actions)
        rewards, terminated, truncated, reached = zip(
            *(scalar.step(action) for scalar, action in zip(scalars, actions.tolist(), strict=True)), strict=True
        )
        assert step.rewards.tolist() == list(rewards)
        assert step.terminated.tolist() == list(terminated)
        assert step.truncated.tolist() == list(truncated)
        ended = [i for i in range(size) if terminated[i] or truncated[i]]
        assert step.ended.tolist() == ended
        assert list(step.final) == [reached[i] for i in ended]
        assert batch.lengths.tolist() == [scalar.length for scalar in scalars]
        ends += len(ended)
    assert ends >= size, "too short to test what happens at the end of games"


@st.composite
def positions(draw):
    """A game of any size and a position in it after some random moves."""
    rows, columns = draw(st.integers(3, 8)), draw(st.integers(3, 8))
    pawns = draw(st.integers(1, rows // 2))
    spec = draw(st.sampled_from([f"breakthrough(rows={rows},columns={columns},pawn_rows={pawns})", "tictactoe"]))
    game, rng = game_of(spec), Rng(draw(st.integers(0, 2**64 - 1)))
    state = game.initial_state(rng)
    for _ in range(draw(st.integers(0, game.max_length))):
        after = game.apply(state, rng.choice(game.legal_actions(state))).state
        if game.is_terminal(after):
            break
        state = after
    return game, state


@settings(max_examples=60, deadline=None)
@given(positions())
def test_every_action_of_a_position_is_played_or_refused_as_by_the_scalar_rules(position):
    game, state = position
    legal = game.legal_actions(state)
    batch = from_states(game, [state] * len(legal))
    assert masks(batch) == [legal] * len(legal)
    step = batch.step(legal)
    expected = [game.apply(state, action) for action in legal]
    assert step.rewards.tolist() == [list(after.rewards) for after in expected]
    assert step.terminated.tolist() == [game.is_terminal(after.state) for after in expected]
    final = dict(zip(step.ended.tolist(), step.final, strict=True))
    assert [final.get(i, now) for i, now in enumerate(batch.states())] == [after.state for after in expected]
    one = from_states(game, [state])
    for action in set(range(-3, game.num_actions + 67)) - set(legal):
        with pytest.raises(ValueError, match=f"game 0: action {action} is illegal"):
            one.step([action])
    assert one.states() == [state]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**64 - 1) | st.text(), st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=20))
def test_streams_are_those_of_rng(seed, bounds):
    streams, everyone = make_streams(seed, 3, "moves"), np.arange(3)
    rngs = [Rng("batched", seed, i, "moves") for i in range(3)]
    for n in bounds:
        assert draw_below(streams, everyone, n).tolist() == [rng.below(n) for rng in rngs]


# -- the end of a game -------------------------------------------------------------------------------------------------
@every_game
def test_the_end_of_a_game_survives_its_restart(spec):
    game = game_of(spec)
    batch, seen = make_batched(game, 5), []
    for _ in range(120):
        step = batch.step(batch.random_actions())
        if len(step.ended):
            seen.append((step, list(step.final), step.rewards.copy()))
            assert all(batch.states()[i] in game.initial_states() for i in step.ended)
            assert not batch.lengths[step.ended].any()
    assert seen
    for step, final, rewards in seen:
        assert list(step.final) == final, "later steps changed what a game ended as"
        assert np.array_equal(step.rewards, rewards)
        for i, state in zip(step.ended, final, strict=True):
            assert game.is_terminal(state) == step.terminated[i] != step.truncated[i]
            if game.num_players == 2:
                assert tuple(step.rewards[i]) == game.returns(state)
            assert game.parse_text(game.to_text(state)) == state


def test_a_game_cut_short_is_no_draw_and_pays_what_the_game_says():
    game = game_of("maze(max_steps=7)")
    far = max(game.initial_states(), key=lambda state: game.make_oracle().distance(state))
    batch = from_states(game, [far])
    for _ in range(6):
        step = batch.step([0])
        assert not step.truncated.any()
    step = batch.step([0])
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([False], [True])
    assert step.rewards.tolist() == [[-2.0]]
    assert not game.is_terminal(step.final[0])


def test_final_states_are_a_sequence():
    batch = from_states(TicTacToe(), [TicTacToeState(0b11, 0b11000), TicTacToeState(0b11, 0b11000)])
    final = batch.step([2, 2]).final
    won = TicTacToeState(0b111, 0b11000)
    assert len(final) == 2
    assert final[0] == final[-1] == won
    assert final[:1] == [won]
    with pytest.raises(IndexError):
        final[2]


# -- refusals ----------------------------------------------------------------------------------------------------------
@every_game
def test_an_illegal_action_is_named_and_changes_nothing(spec):
    game = game_of(spec)
    batch, twin = make_batched(game, 6, seed=1), make_batched(game, 6, seed=1)
    for each in (batch, twin):
        each.step(each.random_actions())
    legal = twin.random_actions()
    assert batch.random_actions().tolist() == legal.tolist()
    illegal = set(range(-2, 2 * game.num_actions)) - set(game.legal_actions(batch.states()[4]))
    for action in illegal:
        wrong = legal.copy()
        wrong[4] = action
        with pytest.raises(ValueError, match=rf"game 4: action {action} is illegal in .*; legal: \("):
            batch.step(wrong)
    for each in (batch, twin):
        each.step(legal)
    assert batch.states() == twin.states()
    assert batch.lengths.tolist() == twin.lengths.tolist()
    assert batch.random_actions().tolist() == twin.random_actions().tolist()


@pytest.mark.parametrize(
    "actions", [[0, 1], [0, 1, 2, 3], [[0, 1, 2]], [0.0, 1.0, 2.0], [True, True, True], ["0", "1", "2"], 0]
)
def test_actions_must_be_one_integer_a_game(actions):
    with pytest.raises(ValueError, match="3 integers, one for each game"):
        make_batched(TicTacToe(), 3).step(actions)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_a_batch_has_at_least_one_game(size):
    with pytest.raises(ValueError, match="size must be a positive integer"):
        make_batched(TicTacToe(), size)


@pytest.mark.parametrize(
    ("spec", "state", "message"),
    [
        ("tictactoe", TicTacToeState(0b111, 0b11000), "game 1: .* is terminal"),
        ("tictactoe", TicTacToeState(0b111, 0), "game 1: .* is not a state of tictactoe"),
        ("tictactoe", TicTacToeState(1, 1), "game 1: .* is not a state of tictactoe"),
        ("tictactoe", (0, 0), "game 1: .* is not a state of tictactoe"),
        ("breakthrough", TicTacToeState(), "game 1: .* is not a state of breakthrough"),
        ("breakthrough", game_of("breakthrough(rows=6)").initial_states()[0], "game 1: .* is not a state of"),
        ("maze", TicTacToeState(), "game 1: .* is not a state of maze"),
        ("frozen_lake", game_of("maze").initial_states()[0], "game 1: .* is not a state of frozen_lake"),
    ],
)
def test_only_states_of_the_game_that_go_on_are_taken(spec, state, message):
    game = game_of(spec)
    start = game.initial_states()[0]
    with pytest.raises(ValueError, match=message):
        from_states(game, [start, state])
    batch = make_batched(game, 2)
    before = batch.states()
    with pytest.raises(ValueError, match=message):
        batch.reset([start, state], seed=5)
    assert batch.states() == before
    with pytest.raises(ValueError, match="2 games need as many states, not 1"):
        batch.reset([start])


# -- seeds -------------------------------------------------------------------------------------------------------------
def history(batch, index, steps):
    out = []
    for _ in range(steps):
        actions = batch.random_actions()
        out.append((batch.states()[index], int(actions[index])))
        batch.step(actions)
    return out


@every_game
def test_a_game_does_not_depend_on_how_many_others_there_are(spec):
    game = game_of(spec)
    small, large, other = make_batched(game, 3, "a"), make_batched(game, 40, "a"), make_batched(game, 3, "b")
    expected = history(small, 2, 60)
    assert history(large, 2, 60) == expected
    assert history(other, 2, 60) != expected
    small.reset(seed="a")
    assert history(small, 2, 60) == expected
    small.reset()
    assert history(small, 2, 60) != expected, "without a seed, reset goes on with the streams it has"


@every_game
def test_interleaved_batches_and_global_generators_are_left_alone(spec):
    game = game_of(spec)
    alone = history(make_batched(game, 2, 1), 0, 30)
    before = random.getstate(), np.random.get_state()[1].tolist()
    batch, disturber, found = make_batched(game, 2, 1), make_batched(game, 4, 2), []
    for _ in range(30):
        found += history(batch, 0, 1)
        disturber.step(disturber.random_actions())
    assert found == alone
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_every_legal_move_is_drawn_alike():
    start = game_of("breakthrough").initial_states()[0]
    legal = game_of("breakthrough").legal_actions(start)
    actions = make_batched(game_of("breakthrough"), 13_000).random_actions()
    counts = np.bincount(actions, minlength=75)[list(legal)]
    assert counts.sum() == 13_000
    assert abs(counts - 13_000 / len(legal)).max() < 5 * np.sqrt(13_000 / len(legal))


# -- games of others ---------------------------------------------------------------------------------------------------
class Misere(TicTacToe):
    """Whoever completes a line loses."""

    def apply(self, state, action, rng=None):
        probability, after, rewards = super().apply(state, action)
        return Step(probability, after, (0 - rewards[0], 0 - rewards[1]))

    def returns(self, state):
        return tuple(0 - value for value in super().returns(state))


class Lottery(TicTacToe):
    """A start that `initial_states` does not list evenly."""

    def initial_state(self, rng):
        return TicTacToeState(1, 0) if rng.random() < 0.9 else TicTacToeState()


def test_a_game_that_changes_the_rules_of_another_is_played_by_its_own():
    batch = from_states(Misere(), [TicTacToeState(0b11, 0b11000)])
    assert batch.step([2]).rewards.tolist() == [[-1.0, 1.0]]


def test_a_game_that_draws_its_start_in_its_own_way_starts_that_way():
    starts = make_batched(Lottery(), 200, seed=4).states()
    assert starts == [Lottery().initial_state(Rng("batched", 4, i, "chance")) for i in range(200)]
    assert len(set(starts)) == 2

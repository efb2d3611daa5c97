"""Exact results of a tabulated agent: against the oracle, and by hand where the oracle has no answer (forfeits)."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nlrl.envs import make
from nlrl.envs.opponents import TabularPolicy, make_opponent
from nlrl.envs.oracle import TabularOracle
from nlrl.orchestration.exact import (
    Turn,
    action_values,
    exact_play,
    mixed_results,
    reachable_turns,
    worst_case,
)

GAME = make("tictactoe")
START = GAME.initial_states()[0]
ORACLE = TabularOracle(GAME)
STATES = [state for state in ORACLE.table.states if not GAME.is_terminal(state)]
OPPONENTS = ("random", "first-move", "minimax", "epsilon(0.3,minimax)")


def random_table(seed: int, most: int = 3, weights: tuple[int, ...] = (0, 1, 2, 5)) -> dict:
    """An agent that weighs up to `most` moves in every state; weights need not sum to anything."""
    rng = random.Random(seed)
    table = {}
    for state in STATES:
        legal = GAME.legal_actions(state)
        moves = {action: rng.choice(weights) for action in rng.sample(legal, min(most, len(legal)))}
        moves[rng.choice(legal)] = 1
        table[state] = moves
    return table


def as_policy(table: dict) -> TabularPolicy:
    """The same agent as the oracle wants it: probabilities."""
    return TabularPolicy({s: {a: w / sum(m.values()) for a, w in m.items()} for s, m in table.items()}, "table")


# -- against the oracle ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("opponent", OPPONENTS)
def test_results_of_a_random_table_are_the_oracles(seed, opponent):
    table, other = random_table(seed), make_opponent(opponent, GAME)
    expected = ORACLE.mixed_outcome(as_policy(table), other)
    found = mixed_results(GAME, table, other)
    assert found[:3] == pytest.approx(expected, abs=1e-9)
    assert found.forfeit == 0
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(2))
def test_each_seat_is_counted_from_the_agents_view(seed):
    table, other = random_table(seed), make_opponent("random", GAME)
    first, second = (exact_play(GAME, table, seat, other).results(START) for seat in (0, 1))
    assert first[:3] == pytest.approx(ORACLE.outcome(as_policy(table), other), abs=1e-9)
    assert second[:3] == pytest.approx(ORACLE.outcome(other, as_policy(table)).swapped(), abs=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_self_play_is_the_policy_against_itself(seed):
    table = random_table(seed)
    expected = ORACLE.outcome(as_policy(table))
    assert exact_play(GAME, table, 0, None).results(START)[:3] == pytest.approx(expected, abs=1e-9)
    assert exact_play(GAME, table, 1, None).results(START)[:3] == pytest.approx(expected.swapped(), abs=1e-9)
    both = mixed_results(GAME, table, None)
    assert both.win == pytest.approx(both.loss)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("most", [1, 3, 9])
def test_the_worst_case_is_the_oracles_exploitability(seed, most):
    table = random_table(seed, most)
    assert worst_case(GAME, table) == pytest.approx(ORACLE.exploitability(as_policy(table)), abs=1e-9)


def test_an_agent_that_plays_only_best_moves_has_no_worst_case():
    table = {state: dict.fromkeys(ORACLE.best_actions(state), 1.0) for state in STATES}
    assert worst_case(GAME, table) == 0
    assert mixed_results(GAME, table, make_opponent("random", GAME)).loss == 0


@pytest.mark.parametrize("seed", range(2))
def test_action_values_are_the_policy_values_of_the_oracle(seed):
    table, other = random_table(seed), make_opponent("epsilon(0.3,minimax)", GAME)
    pairs = [(s, a) for s in random.Random(seed).sample(STATES, 100) for a in GAME.legal_actions(s)]
    found = action_values(GAME, table, [other], pairs)
    seats = [ORACLE.policy_value(as_policy(table), other, seat) for seat in (0, 1)]
    for state, action in pairs:
        expected = seats[GAME.current_player(state)].q_values(state)[action]
        assert found[state, action] == pytest.approx(expected, abs=1e-9)


def test_action_values_average_over_opponents_and_none_is_the_agent_itself():
    table, pair = random_table(7), (START, 4)
    values = [action_values(GAME, table, [one], [pair])[pair] for one in (None, make_opponent("minimax", GAME))]
    both = action_values(GAME, table, [None, make_opponent("minimax", GAME)], [pair])
    assert both[pair] == pytest.approx(sum(values) / 2)
    assert values[0] == pytest.approx(ORACLE.policy_value(as_policy(table)).q_values(START)[4])


def test_a_best_response_is_as_good_as_the_worst_case_says():
    table = random_table(3)
    policy = as_policy(table)
    responses = [ORACLE.best_response(policy, seat).policy for seat in (0, 1)]
    first, second = ORACLE.outcome(policy, responses[1]), ORACLE.outcome(responses[0], policy)
    lost = (first.loss - first.win + second.win - second.loss) / 2
    assert worst_case(GAME, table) == pytest.approx(lost)


# -- forfeits ----------------------------------------------------------------------------------------------------------
def test_a_forfeit_is_an_outcome_of_its_own_and_ends_the_game():
    table = random_table(0) | {START: {None: 1, 4: 3}}
    rest = exact_play(GAME, random_table(0) | {START: {4: 1}}, 0, make_opponent("random", GAME)).results(START)
    found = exact_play(GAME, table, 0, make_opponent("random", GAME)).results(START)
    assert found.forfeit == pytest.approx(0.25)
    assert found[:3] == pytest.approx([0.75 * share for share in rest[:3]])
    assert found.value == pytest.approx(0.75 * (rest.win - rest.loss) - 0.25)


def test_an_agent_that_always_forfeits_loses_everything():
    table = {state: {None: 1} for state in STATES}
    assert mixed_results(GAME, table, make_opponent("first-move", GAME)) == (0, 0, 0, 1)
    assert worst_case(GAME, table) == 1


def test_in_self_play_the_other_sides_forfeit_is_a_win():
    table = random_table(1) | {START: {None: 1}}
    assert exact_play(GAME, table, 0, None).results(START) == (0, 0, 0, 1)
    assert exact_play(GAME, table, 1, None).results(START) == (1, 0, 0, 0)


def test_a_forfeit_counts_as_a_loss_for_the_worst_case():
    best = {state: {ORACLE.best_actions(state)[0]: 1.0} for state in STATES}
    assert worst_case(GAME, best | {START: {None: 1, 4: 1}}) == pytest.approx(0.25)  # half the games of one seat of two


# -- tables that are not whole -----------------------------------------------------------------------------------------
def test_a_missing_state_that_can_come_up_is_an_error():
    with pytest.raises(KeyError):
        mixed_results(GAME, {START: {4: 1}}, make_opponent("random", GAME))


def test_reachable_turns_asks_for_all_that_is_needed_and_nothing_twice():
    table, asked = random_table(5, most=1), []

    def choose(turns):
        asked.extend((turn.state, turn.seat) for turn in turns)
        return [list(table[turn.state]) for turn in turns]

    reachable_turns(GAME, choose, [Turn(START, seat, 0) for seat in (0, 1)])
    assert max(Counter(asked).values()) == 1
    assert all(GAME.current_player(state) == seat for state, seat in asked)
    assert len(asked) < len(STATES)
    met = {state: table[state] for state, _ in asked}
    for opponent in OPPONENTS:
        other = make_opponent(opponent, GAME)
        assert mixed_results(GAME, met, other) == mixed_results(GAME, table, other)
    assert worst_case(GAME, met) == worst_case(GAME, table)


def test_an_agent_that_is_its_own_opponent_is_asked_for_both_seats():
    table, met = random_table(5, most=1), {}

    def choose(turns):
        met.update((turn.state, table[turn.state]) for turn in turns)
        return [list(table[turn.state]) for turn in turns]

    start = GAME.apply(START, 4).state
    reachable_turns(GAME, choose, [Turn(start, 0, 1)], both_seats=True)
    found = action_values(GAME, met, [None], [(START, 4)])
    assert found == action_values(GAME, table, [None], [(START, 4)])


def test_reachable_turns_knows_how_many_moves_were_made():
    plies = {}

    def choose(turns):
        plies.update((turn.state, turn.ply) for turn in turns)
        return [GAME.legal_actions(turn.state) for turn in turns]

    reachable_turns(GAME, choose, [Turn(START, 0, 0)])
    assert all(ply == 9 - len(GAME.legal_actions(state)) for state, ply in plies.items())


def test_a_game_with_scripted_ends(scripted_game):
    game = scripted_game(
        {
            "start": {"a": "x", "b": "y"},
            "x": {"c": "lost", "d": "won"},
            "y": {"c": "even"},
            "lost": -1,
            "won": 1,
            "even": 0,
        },
        players=2,
    )
    a, b = (game.parse_action("start", move) for move in "ab")
    table = {"start": {a: 3, b: 1}}
    found = exact_play(game, table, 0, make_opponent("random", game)).results("start")
    assert found == pytest.approx((0.375, 0.25, 0.375, 0))

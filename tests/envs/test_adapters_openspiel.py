"""Our games in OpenSpiel: its own tests pass, its algorithms run, and games played through it are ours."""

import random
import sys
import types
import unittest

import numpy as np
import pyspiel
import pytest

from nlrl import envs
from nlrl.envs import Rng
from nlrl.envs.adapters.openspiel import to_openspiel
from nlrl.envs.oracle import TabularOracle, oracle_for
from nlrl.envs.tictactoe import TicTacToe
from nlrl.errors import GameError, NLRLError

SPECS = (
    "tictactoe",
    "breakthrough",
    "breakthrough(rows=6,columns=4,pawn_rows=1)",
    "maze",
    "maze(layout=umaze,max_steps=12)",
    "maze(layout=umaze,observed=partial,history=3,max_steps=20)",
    "maze(layout=medium,goal=(1,1),starts=((3,2),(3,3)))",
    "frozen_lake",
    "frozen_lake(slippery=False)",
    "frozen_lake(layout=random,maps=5,seed=2)",
)
BUILT_IN = ("nlrl_tictactoe", "nlrl_breakthrough", "nlrl_maze", "nlrl_frozen_lake")


@pytest.fixture(params=SPECS)
def game(request):
    return envs.make_from_spec(request.param)


@pytest.fixture
def value_iteration(monkeypatch):
    """OpenSpiel's, which imports an optional solver for games with simultaneous moves; ours have none."""
    solver = "open_spiel.python.algorithms.lp_solver"
    if solver not in sys.modules:
        monkeypatch.setitem(sys.modules, solver, types.ModuleType(solver))
    from open_spiel.python.algorithms import value_iteration

    return value_iteration.value_iteration


def decide(state):
    """`state` after chance has drawn first outcomes, until a player is to move."""
    while state.is_chance_node():
        state.apply_action(state.chance_outcomes()[0][0])
    return state


# -- loading by name ---------------------------------------------------------------------------------------------------
def test_names_are_registered_with_parameters_of_their_games():
    known = {kind.short_name: kind for kind in pyspiel.registered_games()}
    assert set(BUILT_IN) <= set(known)
    assert known["nlrl_breakthrough"].parameter_specification == {"rows": 5, "columns": 5, "pawn_rows": -1}
    assert (
        pyspiel.load_game("nlrl_breakthrough(rows=4,pawn_rows=2)").rules.spec
        == "breakthrough(columns=5,pawn_rows=2,rows=4)"
    )
    assert pyspiel.load_game("nlrl_maze(layout=medium,goal=[1;1])").rules.params["goal"] == (1, 1)


@pytest.mark.parametrize("name", ["nlrl_breakthrough(rows=99)", "nlrl_maze(layout=nowhere)", "nlrl_maze(goal=top)"])
def test_parameters_that_cannot_be_are_refused(name):
    with pytest.raises(ValueError, match=r"rows|nowhere|top"):
        pyspiel.load_game(name)


def test_a_name_loads_the_game_that_it_was_written_for(game):
    wrapped = to_openspiel(game)
    assert pyspiel.load_game(str(wrapped)).rules.spec == game.spec


# -- OpenSpiel's own tests ---------------------------------------------------------------------------------------------
def test_openspiels_simulation_test_passes(game):
    pyspiel.random_sim_test(to_openspiel(game), num_sims=2, serialize=True, verbose=False)


def test_openspiels_api_tests_pass(game):
    from open_spiel.integration_tests import api_test

    wrapped = to_openspiel(game)
    case = type("Case", (api_test.EnforceAPIOnPartialTreeBase,), {"game": wrapped, "game_name": str(wrapped)})
    result = unittest.TestResult()
    generators = np.random.get_state()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    np.random.set_state(generators)
    assert result.testsRun >= 5
    assert not result.errors + result.failures, result


def test_openspiels_serialization_tests_pass(game):
    from open_spiel.python.tests.games_sim_test import GamesSimTest

    generators = np.random.get_state()
    GamesSimTest().sim_game(to_openspiel(game))
    np.random.set_state(generators)


def test_what_a_partially_observed_game_tells_has_perfect_recall():
    from open_spiel.integration_tests import api_test

    game = envs.make("maze", layout="umaze", observed="partial", history=1, max_steps=3)
    wrapped = to_openspiel(game)
    assert wrapped.get_type().information == pyspiel.GameType.Information.IMPERFECT_INFORMATION
    histories = api_test._assert_is_perfect_recall(wrapped)
    assert len(game.initial_states()) > len([key for key, past in histories.items() if len(past) <= 1]) > 1


# -- the same games ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(3))
def test_random_games_through_openspiel_are_games_by_our_rules(game, seed):
    rng, wrapped = Rng("openspiel", seed), to_openspiel(game)
    ours, theirs = game.initial_state(rng), wrapped.new_initial_state()
    if len(game.initial_states()) > 1:
        theirs.apply_action(list(game.initial_states()).index(ours))
    totals = [0.0] * game.num_players
    for played in range(game.max_length):
        assert game.observation_text(ours, 0) == theirs.observation_string(0)
        if game.is_terminal(ours):
            break
        assert theirs.move_number() >= played
        assert theirs.current_player() == game.current_player(ours)
        assert tuple(theirs.legal_actions()) == game.legal_actions(ours)
        action = rng.choice(game.legal_actions(ours))
        assert theirs.action_to_string(action) == game.action_text(ours, action)
        steps, chosen = game.transitions(ours, action), 0
        theirs.apply_action(action)
        if len(steps) > 1:
            assert [p for _, p in theirs.chance_outcomes()] == [step.probability for step in steps]
            theirs.apply_action(chosen := rng.below(len(steps)))
        ours, rewards = steps[chosen].state, steps[chosen].rewards
        totals = [total + reward for total, reward in zip(totals, rewards, strict=True)]
    assert theirs.is_terminal()
    if not game.is_terminal(ours):
        totals = [total + game.truncation_reward for total in totals]
    assert theirs.returns() == totals


def test_a_game_that_is_cut_is_terminal_with_its_truncation_reward():
    wrapped = pyspiel.load_game("nlrl_maze(max_steps=7)")
    state = decide(wrapped.new_initial_state())
    for move in range(7):
        assert not state.is_terminal()
        up_or_left = next(a for a in (2, 0) if wrapped.rules.apply(state.position.state, a).rewards == (-1.0,))
        state.apply_action(up_or_left)
        assert state.rewards() == [-2.0 if move == 6 else -1.0]
    assert state.is_terminal()
    assert state.position.truncated
    assert state.returns() == [-8.0] == [wrapped.min_utility() + 1]


def test_rewards_can_be_kept_to_the_end():
    for pay_at_end in (False, True):
        state = decide(to_openspiel(envs.make("maze", max_steps=5), pay_at_end).new_initial_state())
        state.apply_action(0)
        assert state.rewards() == state.returns() == ([0.0] if pay_at_end else [-1.0])
        while not state.is_terminal():
            state.apply_action(0)
        assert state.returns() == [-6.0]
        assert state.rewards() == ([-6.0] if pay_at_end else [-2.0])


def test_only_games_of_one_player_can_keep_rewards():
    with pytest.raises(GameError, match="one player"):
        to_openspiel(TicTacToe(), pay_at_end=True)


# -- a user's own game -------------------------------------------------------------------------------------------------
class OwnGame(TicTacToe):
    """A game that nlrl.envs does not know."""

    name = "test_of_openspiel"


def test_a_game_that_is_registered_nowhere_works_like_the_others():
    wrapped = to_openspiel(OwnGame())
    pyspiel.random_sim_test(wrapped, num_sims=2, serialize=True, verbose=False)
    assert isinstance(pyspiel.load_game("nlrl_test_of_openspiel").rules, OwnGame)


def test_a_game_cannot_take_the_name_of_ours():
    impostor = type("Impostor", (TicTacToe,), {"name": "maze"})
    with pytest.raises(GameError, match="nlrl_maze is"):
        to_openspiel(impostor())
    assert type(pyspiel.load_game("nlrl_maze").rules) is type(envs.make("maze"))


class LateChance(TicTacToe):
    """Leaves the eighth move to chance, which a look at the first states does not show."""

    name = "test_of_late_chance"

    def transitions(self, state, action):
        steps = super().transitions(state, action)
        return steps if len(self.legal_actions(state)) != 2 else (steps[0]._replace(probability=0.5),) * 2


def test_chance_that_was_not_declared_is_refused():
    state = to_openspiel(LateChance()).new_initial_state()
    for action in (0, 1, 2, 4, 3, 6, 5):
        state.apply_action(action)
    with pytest.raises(NLRLError, match="2 outcomes of one action"):
        state.apply_action(7)


# -- OpenSpiel's algorithms --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*BUILT_IN[:2], "nlrl_maze(pay_at_end=True)", "nlrl_frozen_lake(pay_at_end=True)"])
def test_openspiels_mcts_plays(name):
    from open_spiel.python.algorithms import mcts

    game = pyspiel.load_game(name)
    evaluator = mcts.RandomRolloutEvaluator(1, np.random.RandomState(0))
    bot = mcts.MCTSBot(game, 1.4, 20, evaluator, random_state=np.random.RandomState(1))
    state = decide(game.new_initial_state())
    assert bot.step(state) in state.legal_actions()


def test_openspiels_mcts_takes_a_win():
    from open_spiel.python.algorithms import mcts

    game = pyspiel.load_game("nlrl_tictactoe")
    state = game.new_initial_state()
    for action in (0, 3, 1, 4):
        state.apply_action(action)
    evaluator = mcts.RandomRolloutEvaluator(2, np.random.RandomState(0))
    assert mcts.MCTSBot(game, 1.4, 100, evaluator, random_state=np.random.RandomState(1)).step(state) == 2


@pytest.mark.parametrize("name", ["tictactoe", "breakthrough(rows=3,columns=3)"])
def test_openspiels_alpha_beta_finds_our_exact_values(name):
    from open_spiel.python.algorithms import minimax

    game, rng = envs.make_from_spec(name), random.Random(0)
    wrapped, oracle = to_openspiel(game), TabularOracle(game)
    for _ in range(10):
        state = wrapped.new_initial_state()
        for _ in range(3):
            if not state.is_terminal():
                state.apply_action(rng.choice(state.legal_actions()))
        if not state.is_terminal():
            value, action = minimax.alpha_beta_search(wrapped, state)
            assert value == oracle.value(state.position.state)
            assert action in oracle.best_actions(state.position.state)


@pytest.mark.parametrize(
    "name",
    [
        "tictactoe",
        "breakthrough(rows=3,columns=3)",
        "maze(layout=umaze,max_steps=15)",
        "frozen_lake",
        "frozen_lake(slippery=False)",
    ],
)
def test_openspiels_value_iteration_finds_our_exact_values(value_iteration, name):
    game = envs.make_from_spec(name)
    wrapped = to_openspiel(game)
    values = value_iteration(wrapped, -1, 1e-9, cyclic_game=True)
    state = decide(wrapped.new_initial_state())
    oracle = TabularOracle(game) if game.num_players == 2 else oracle_for(game)
    assert values[str(state)] == pytest.approx(oracle.value(state.position.state))

"""Games in which the policy's move is now and then drawn at random: what is asked, recorded and learned."""

from __future__ import annotations

import math

import pytest

from nlrl.envs import make
from nlrl.errors import NLRLError
from nlrl.orchestration.config import OWN_GAMES, RolloutConfig, RunConfig, validated
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.policy_table import run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout, visits
from nlrl.orchestration.worker import ContinuationTask, ContinueJob, PlayJob, RolloutWorker, game_tasks
from nlrl.testing import ScriptedModel
from nlrl.testing.by_rules import RuleModel

GAME = make("tictactoe")
CENTRE = 4


def worker(model=None):
    return RolloutWorker("tictactoe", model or RuleModel(), "plain", 96, RolloutConfig(), 0)


def records(explore, count=300, opponents=("random",), model=None):
    tasks = game_tasks("test", 0, 1, "rollout", count, opponents)
    return worker(model).play(PlayJob("base", 1.0, tasks, explore=explore))


def own_turns(record):
    states = line_of_record(GAME, record).states[: len(record["actions"])]
    return [ply for ply, state in enumerate(states) if GAME.current_player(state) == record["seat"]]


def centre(request):
    """Always the centre where it is free; else nothing that can be read."""
    return "I take the middle.\nbest_move: 5" if " 5 " in request.messages[-1].content else "I give up."


# -- the games ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("explore", [0.1, 0.5])
def test_so_many_of_the_policys_turns_explore_and_nothing_is_asked_there(explore):
    found = records(explore)
    turns = sum(len(own_turns(record)) for record in found)
    explored = sum(len(record.get("explored", ())) for record in found)
    assert explored / turns == pytest.approx(explore, abs=4 * math.sqrt(explore * (1 - explore) / turns))
    for record in found:
        asked = {turn["ply"] for turn in record["turns"]}
        assert sorted(asked | set(record.get("explored", ()))) == own_turns(record)
        assert not asked & set(record.get("explored", ()))


def test_explored_moves_are_any_legal_ones_and_all_others_are_the_policys():
    found, seen = records(0.5, 400, model=ScriptedModel(centre)), set()
    for record in found:
        states = line_of_record(GAME, record).states
        for ply in record.get("explored", ()):
            assert record["actions"][ply] in GAME.legal_actions(states[ply])
            seen.add(record["actions"][ply])
        for ply in {turn["ply"] for turn in record["turns"] if not turn["failures"]}:
            assert record["actions"][ply] == CENTRE
    assert seen == set(range(9))


def test_without_it_records_are_what_they_were():
    plain = worker().play(PlayJob("base", 1.0, game_tasks("test", 0, 1, "rollout", 40, ("random", "self"))))
    assert plain == records(0.0, 40, ("random", "self"))
    assert not any("explored" in record for record in plain)
    assert records(0.3, 40) == records(0.3, 40)


def test_games_that_are_played_on_are_the_policys_alone():
    tasks = [ContinuationTask(GAME.initial_states()[0], 0, 0, 20, seed=1)]
    (samples,) = worker(ScriptedModel(centre)).continue_games(ContinueJob("base", 1.0, ("first-move",), tasks))
    assert {sample.actions[:3] for sample in samples} == {(0, 1, CENTRE)}


def test_states_behind_what_the_policy_never_plays_are_met():
    """The policy takes the centre first; where it is free on its second turn, it has not."""
    for explore, any_free in ((0.0, False), (0.3, True)):
        met = visits(GAME, records(explore, model=ScriptedModel(centre)))
        assert any(visit.ply >= 2 and CENTRE in GAME.legal_actions(state) for state, visit in met.items()) == any_free


# -- runs --------------------------------------------------------------------------------------------------------------
def test_evaluations_do_not_explore(session):
    one = session(rollout={"explore": 0.9}, evaluation={"games": 8})
    run_rollout(one, 1)
    run_policy_table(one, 1)
    run_evaluation(one, 1)
    assert any("explored" in record for record in one.folder.stage(1, "rollout").records())
    assert not any("explored" in record for record in one.folder.stage(1, "evaluation").records())


@pytest.mark.parametrize("method", OWN_GAMES)
def test_methods_that_learn_from_their_own_games_refuse_it(method):
    values = {"method": method, "rollout": {"explore": 0.1, "retries": 0}}
    with pytest.raises(NLRLError, match=f"rollout.explore must be 0: {method} learns from how its own games ended"):
        validated(RunConfig, values, "config")

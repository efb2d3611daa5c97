"""Games with language players: what they are asked, what decides their course, how they end."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from nlrl.agents.roles import Roles
from nlrl.backbones.language_model import Sampling
from nlrl.envs import make
from nlrl.envs.opponents import make_opponent
from nlrl.envs.random import Rng
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.players import SELF, Play, PolicyPool, play
from nlrl.orchestration.worker import (
    ContinuationTask,
    ContinueJob,
    GameTask,
    PlayJob,
    RolloutWorker,
    TableJob,
    game_tasks,
)
from nlrl.testing import FaultyModel, ScriptedModel
from nlrl.testing.by_rules import RuleModel

GAME = make("tictactoe")
START = GAME.initial_states()[0]
OPPONENTS = ("random", "minimax", "self")


class Counting:
    """A model that counts how often each request came."""

    def __init__(self, inner):
        self._inner, self.name, self.reads_expectations = inner, inner.name, inner.reads_expectations
        self.asked, self.calls = Counter(), 0

    @property
    def weight_version(self):
        return self._inner.weight_version

    def generate(self, requests):
        self.calls += 1
        self.asked.update(requests)
        return self._inner.generate(requests)


def worker(model=None, seed=0, **config):
    settings = RolloutConfig(**{"samples_per_state": 3, "samples_at_start": 12, **config})
    return RolloutWorker("tictactoe", model or RuleModel(), "plain", 96, settings, seed)


def games(count=24, opponents=OPPONENTS, seed=0, **options):
    return game_tasks("test", seed, 1, "rollout", count, opponents, **options)


def job(tasks, version="base", temperature=1.0):
    return PlayJob(version, temperature, tasks)


def boards(requests):
    return {request.messages[-1].content for request in requests}


def after(*actions):
    state = START
    for action in actions:
        state = GAME.apply(state, action).state
    return state


# -- what the model is asked -------------------------------------------------------------------------------------------
def test_an_identical_prompt_is_answered_once():
    model = Counting(RuleModel())
    worker(model).play(job(games(40)))
    assert max(model.asked.values()) == 1


def test_a_pool_that_forgets_plays_the_same_games(monkeypatch):
    plain = worker().play(job(games(40)))
    monkeypatch.setattr("nlrl.orchestration.players.REMEMBERED", 500)  # tokens: a few answers
    model = Counting(RuleModel())
    forgetful = worker(model)
    assert [forgetful.play(job(games(40))) for _ in range(2)] == [plain, plain]
    assert max(model.asked.values()) > 1


def test_a_state_is_answered_as_often_as_its_ply_allows():
    model = Counting(RuleModel())
    worker(model, samples_per_state=2, samples_at_start=16).play(job(games(200, ("random",))))
    per_prompt = Counter(request.messages[-1].content for request in model.asked)
    by_ply = {
        ply: [n for prompt, n in per_prompt.items() if prompt.count(" O ") + prompt.count(" X ") == ply]
        for ply in range(3)
    }
    assert max(by_ply[0]) > 12  # of 16, by 100 games
    assert max(by_ply[1]) <= 4
    assert max(by_ply[2]) <= 2


def test_every_answer_is_drawn_with_a_seed_of_its_own():
    model = Counting(RuleModel())
    worker(model).play(job(games(40)))
    assert len({request.seed for request in model.asked}) == len(model.asked)


def test_games_go_on_side_by_side_one_batch_a_turn():
    model = Counting(RuleModel())
    worker(model).play(job(games(60, ("random",))))
    assert model.calls <= 9


def test_a_greedy_policy_gives_one_answer_a_state():
    model = Counting(RuleModel())
    records = worker(model).play(job(games(60), temperature=0.0))
    assert max(Counter(request.messages[-1].content for request in model.asked).values()) == 1
    assert {request.sampling.temperature for request in model.asked} == {0.0}
    said = {}
    for record in records:
        state = GAME.parse_text(record["start"])
        turns = {turn["ply"]: turn["reply"] for turn in record["turns"]}
        for ply, action in enumerate(record["actions"]):
            if ply in turns:
                assert said.setdefault(state, turns[ply]) == turns[ply]
            state = GAME.apply(state, action).state


def test_another_policy_version_is_asked_anew():
    model = Counting(RuleModel())
    one = worker(model)
    one.play(job(games(10)))
    before = sum(model.asked.values())
    one.play(job(games(10)))
    assert sum(model.asked.values()) == before
    one.play(job(games(10), version="actor@1"))
    assert sum(model.asked.values()) > before


def test_the_table_is_what_the_games_drew_from():
    model = Counting(RuleModel())
    one = worker(model)
    records = one.play(job(games(40, ("random",))))
    asked = sum(model.asked.values())
    first, second = one.policy_table(TableJob("base", 1.0, [START, after(4)], [0, 1]))
    assert sum(first.values()) == 12
    assert sum(second.values()) == 3
    played = Counter(record["actions"][0] for record in records if record["seat"] == 0)
    assert played.keys() <= first.keys()
    assert max(model.asked.values()) == 1
    assert sum(model.asked.values()) < asked + 15  # only what no game had needed


def test_the_mask_may_want_more_samples_than_games_do():
    (moves,) = worker().policy_table(TableJob("base", 1.0, [after(0)], [1], samples=20))
    assert sum(moves.values()) == 20


# -- what a game depends on --------------------------------------------------------------------------------------------
def test_a_game_depends_on_its_task_alone():
    tasks = games(30)
    together = worker().play(job(tasks))
    alone = [record for task in tasks for record in worker().play(job([task]))]
    assert together == alone
    shuffled = random.Random(0).sample(tasks, len(tasks))
    assert sorted(worker().play(job(shuffled)), key=lambda r: r["key"]) == sorted(together, key=lambda r: r["key"])


def test_games_depend_on_the_runs_seed():
    tasks = games(10, ("random",))
    assert worker(seed=0).play(job(tasks)) == worker(seed=0).play(job(tasks))
    assert worker(seed=0).play(job(tasks)) != worker(seed=1).play(job(tasks))


def test_tasks_alternate_seats_and_draw_opponents_evenly():
    tasks = games(600)
    assert [task.seat for task in tasks] == [0, 1] * 300
    drawn = Counter(task.opponent for task in tasks)
    assert set(drawn) == set(OPPONENTS)
    assert min(drawn.values()) > 150
    seats = Counter((task.seat, task.opponent) for task in tasks)
    assert min(seats.values()) > 60
    assert len({task.key for task in tasks}) == len({task.seed for task in tasks}) == 600


def test_paired_tasks_share_opponent_and_seed_and_swap_seats():
    tasks = games(40, paired=True)
    for first, second in zip(tasks[::2], tasks[1::2], strict=True):
        assert (first.opponent, first.seed) == (second.opponent, second.seed)
        assert (first.seat, second.seat) == (0, 1)
        assert first.key != second.key
    assert len({task.seed for task in tasks}) == 20


@pytest.mark.parametrize(
    "other", [("other", 0, 1, "rollout"), ("test", 1, 1, "rollout"), ("test", 0, 2, "rollout"), ("test", 0, 1, "eval")]
)
def test_keys_and_seeds_tell_runs_iterations_and_purposes_apart(other):
    there = game_tasks(*other, 20, OPPONENTS)
    assert not {task.key for task in games(20)} & {task.key for task in there}
    assert not {task.seed for task in games(20)} & {task.seed for task in there}


def test_more_games_are_the_same_games_and_some_more():
    assert games(30)[:10] == games(10)


# -- how a game is played ----------------------------------------------------------------------------------------------
def test_a_record_retells_a_legal_game_with_every_answer_of_the_policy():
    for record in worker().play(job(games(30))):
        state, seat = GAME.parse_text(record["start"]), record["seat"]
        mine = []
        for ply, action in enumerate(record["actions"]):
            assert action in GAME.legal_actions(state)
            if GAME.current_player(state) == seat:
                mine.append((ply, action))
            state = GAME.apply(state, action).state
        assert GAME.is_terminal(state)
        value = GAME.returns(state)[seat]
        assert record["result"] == {1: "win", 0: "draw", -1: "loss"}[value]
        assert [turn["ply"] for turn in record["turns"]] == [ply for ply, _ in mine]
        assert [int(turn["reply"][-1]) - 1 for turn in record["turns"]] == [action for _, action in mine]
        assert all(turn["tokens"] > 0 and turn["failures"] == [] for turn in record["turns"])


def test_opponents_play_their_own_moves():
    for record in worker().play(job(games(20, ("first-move",)))):
        state = START
        for action in record["actions"]:
            if GAME.current_player(state) != record["seat"]:
                assert action == GAME.legal_actions(state)[0]
            state = GAME.apply(state, action).state


def test_against_itself_the_policy_is_asked_for_both_sides():
    model = Counting(RuleModel())
    records = worker(model).play(job(games(6, (SELF,))))
    movers = {prompt.splitlines()[-1][0] for prompt in boards(model.asked)}
    assert movers == {"O", "X"}
    assert all(len(record["turns"]) == len(record["actions"][record["seat"] :: 2]) for record in records)


# -- forfeits ----------------------------------------------------------------------------------------------------------
def test_a_policy_without_a_legal_answer_forfeits_after_its_retries_and_nothing_is_played_for_it():
    model = Counting(FaultyModel(RuleModel(), {"illegal": 1.0}))
    records = worker(model, retries=2).play(job(games(4, ("random",))))
    assert [record["result"] for record in records] == ["forfeit"] * 4
    for record in records:
        assert len(record["actions"]) == record["seat"]  # as second player it saw one move of the opponent
        (turn,) = record["turns"]
        assert turn["ply"] == record["seat"]
        assert turn["failures"] == ["illegal"] * 3


def test_a_second_answer_saves_the_game_and_the_failure_is_counted():
    model = FaultyModel(RuleModel(), {"illegal": 0.2}, seed=1)
    turns = [turn for record in worker(model, retries=5).play(job(games(30))) for turn in record["turns"]]
    failed = [turn for turn in turns if turn["failures"]]
    assert 0.08 < len(failed) / len(turns) < 0.35
    assert {reason for turn in failed for reason in turn["failures"]} == {"illegal"}


def test_a_forfeit_of_the_other_self_is_a_win():
    speechless = ScriptedModel(
        lambda request: "best_move: 5" if "O to move" in request.messages[-1].content else "pass"
    )
    tasks = [GameTask("first", 0, SELF, 1), GameTask("second", 1, SELF, 1)]
    first, second = worker(speechless, retries=0).play(job(tasks))
    assert (first["result"], second["result"]) == ("win", "forfeit")
    assert first["actions"] == second["actions"] == [4]
    assert second["turns"][0]["failures"] == ["missing"]
    assert [turn["ply"] for turn in first["turns"]] == [0]


def test_play_stops_at_the_longest_when_it_is_the_policys_turn():
    pool = PolicyPool(RuleModel(), Roles(GAME).policy, Sampling(), seed=0, samples_per_state=4)
    for longest in (1, 2, 3, 4):
        plays = [
            Play(START, seat, "random", Rng("game", seat, index), longest=longest)
            for seat in (0, 1)
            for index in range(5)
        ]
        play(GAME, plays, pool, {"random": make_opponent("random", GAME)})
        for one in plays:
            assert GAME.current_player(one.state) == one.seat
            assert longest <= len(one.actions) <= longest + 1


# -- continuations -----------------------------------------------------------------------------------------------------
STATE = after(4, 0)


def continuations(tasks, opponents=OPPONENTS, steps=None, model=None):
    return worker(model).continue_games(ContinueJob("base", 1.0, opponents, tasks, steps))


def test_continuations_start_from_the_position_with_the_action_and_are_played_to_the_end():
    tasks = [ContinuationTask(STATE, 2, action, 12, seed=action) for action in GAME.legal_actions(STATE)]
    for task, samples in zip(tasks, continuations(tasks), strict=True):
        assert len(samples) == 12
        assert len({sample.actions for sample in samples}) > 6
        for sample in samples:
            state = STATE
            assert sample.actions[0] == task.action
            for action in sample.actions:
                state = GAME.apply(state, action).state  # raises on an illegal move
            assert GAME.is_terminal(state)
            value = GAME.returns(state)[GAME.current_player(STATE)]
            assert sample.result == {1: "win", 0: "draw", -1: "loss"}[value]


def test_a_continuation_depends_on_its_task_alone():
    tasks = [ContinuationTask(STATE, 2, action, 5, seed=action) for action in GAME.legal_actions(STATE)]
    together = continuations(tasks)
    assert together == [samples for task in tasks for samples in continuations([task])]
    assert together == continuations(tasks[::-1])[::-1]
    more = continuations([ContinuationTask(STATE, 2, 1, 9, seed=1)])
    assert more[0][:5] == together[0]


def test_a_continuation_that_the_policy_cannot_go_on_is_a_forfeit():
    model = FaultyModel(RuleModel(), {"empty": 1.0})
    (samples,) = continuations([ContinuationTask(START, 0, 4, 3, seed=0)], ("random",), model=model)
    assert [sample.result for sample in samples] == ["forfeit"] * 3
    assert [len(sample.actions) for sample in samples] == [
        2
    ] * 3  # the action itself needs no answer, nor does the opponent


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_look_ahead_ends_on_the_policys_turn_with_the_move_it_would_make(steps):
    (samples,) = continuations([ContinuationTask(START, 0, 4, 20, seed=3)], ("random",), steps=steps)
    for sample in samples:
        assert sample.result is None
        assert len(sample.actions) == steps + steps % 2
        assert GAME.current_player(sample.state) == 0
        assert sample.next_action in GAME.legal_actions(sample.state)


def test_a_look_ahead_that_reaches_the_end_has_a_result_instead():
    nearly = after(0, 4, 1, 5)  # O completes 1-2-3 with 3
    (won,) = continuations([ContinuationTask(nearly, 4, 2, 4, seed=0)], steps=2)
    assert {(sample.result, sample.state, sample.next_action) for sample in won} == {("win", None, None)}

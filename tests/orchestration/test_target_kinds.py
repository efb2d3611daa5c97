"""Temporal differences, lambda, values of positions, values against named opponents, self-play: what is asked, what is
learned, and that the mixtures are exact."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest

from nlrl.agents.language import Line
from nlrl.agents.roles import GAME_OVER, ActionInput, Evaluation, StateInput
from nlrl.envs import make
from nlrl.envs.opponents import TabularPolicy, make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.orchestration.exact import action_values
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.opinions import evaluate_moves, nearest_to_mean
from nlrl.orchestration.stages.outlooks import Ahead, outlooks
from nlrl.orchestration.stages.policy_table import read_table, run_policy_table, value_states
from nlrl.orchestration.stages.rollout import run_rollout, visits
from nlrl.orchestration.stages.targets import run_targets
from nlrl.orchestration.stages.training import run_actor, run_critic
from nlrl.orchestration.worker import ContinuationTask, ContinueJob, depth

GAME = make("tictactoe")
START = GAME.initial_states()[0]
Q, V, G2, G1_V = (
    "Value the move.",
    "Value the position.",
    "Join the steps and what follows.",
    "Judge the position from these outlooks.",
)
STAGES = (run_rollout, run_targets, run_policy_table, run_critic, run_improvement, run_actor)


def records(session, stage, iteration=1):
    return list(session.folder.stage(iteration, stage).records())


def prompts(watched, task):
    found = [request.messages[-1].content for _, requests in watched.calls for request in requests]
    return [prompt for prompt in found if prompt.startswith(task)]


def stages(one, *names):
    for stage in names or STAGES:
        stage(one, 1)


def after(*actions):
    state = START
    for action in actions:
        state = GAME.apply(state, action).state
    return state


# -- lambda ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("decay", [0.0, 0.3, 0.8])
def test_depths_are_geometric(decay):
    n = 20_000
    found = Counter(depth(decay, 7, index) for index in range(n))
    for steps in (1, 2, 3):
        assert found[steps] / n == pytest.approx((1 - decay) * decay ** (steps - 1), abs=0.012)
    assert depth(decay, 7, 3) == depth(decay, 7, 3)


def looked_ahead(session, decay, count=40):
    task = ContinuationTask(START, 0, 4, count, seed=5)
    job = ContinueJob("base", 1.0, ("random",), [task], steps=2, decay=decay, next_actions=False)
    (samples,) = session.workers[0].call("continue_games", job).result()
    return samples


def test_look_aheads_are_as_long_as_they_were_drawn_or_end_before(session):
    one = session()
    for index, sample in enumerate(looked_ahead(one, 0.8)):
        wanted = 2 * depth(0.8, 5, index)
        assert len(sample.actions) == wanted if sample.result is None else len(sample.actions) <= 9
        if sample.result is None:
            assert GAME.current_player(sample.state) == 0
            assert sample.next_action is None
    lengths = {len(sample.actions) for sample in looked_ahead(one, 0.8)}
    assert len(lengths) > 3


def test_a_look_ahead_is_the_beginning_of_the_longer_one(session):
    one = session()
    for short, long in zip(looked_ahead(one, 0.0), looked_ahead(one, 0.8), strict=True):
        assert long.actions[: len(short.actions)] == short.actions


def test_lambda_targets_merge_outlooks_of_several_depths(session, watched):
    one = session(model=watched.config, targets={"kind": "lambda", "trace": 0.7, "continuations": 6})
    stages(one, run_rollout, run_targets)
    steps = Counter(
        len(prompt.split("\nsteps: ")[1].split("\n")[0].split(",")[0].split()) for prompt in prompts(watched, G2)
    )
    assert {2, 4} <= set(steps)
    assert max(steps) <= 4  # longer ones are joined piece by piece: the model has seen no more
    found = records(one, "targets")
    assert {record["evidence"] for record in found} == {"outlooks"}
    assert all(record["verdict"] is not None for record in found)


def test_what_is_longer_than_the_teacher_knows_is_joined_from_the_end(session):
    """A game of seven moves to its end: whatever the pieces, its result arrives at the first mover."""
    one = session()
    moves = (0, 3, 1, 4, 8, 6, 2)  # O completes 1-2-3
    states = [START]
    for action in moves:
        states.append(GAME.apply(states[-1], action).state)
    for start in range(5):
        line = Line(tuple(states[start:]), moves[start:])
        (found,) = outlooks(one, [Ahead(line)])
        text = found.text
        assert found.successor == GAME_OVER
        assert str(moves[start] + 1) in found.played
        assert ("+1.00" if start % 2 == 0 else "-1.00") in text
        assert text.count("1.00") == 1


class Exact(dict):
    """Texts for a critic that says the exact values of uniformly random play, which is what the untrained policy plays
    against a random opponent. Made as they are asked for."""

    def __init__(self, roles):
        super().__init__()
        self.roles, self.oracle = roles, oracle_for(GAME).policy_value(make_opponent("random", GAME))

    def say(self, state, action):
        value = self.oracle.value(state) if action is None else self.oracle.q_values(state)[action]
        inp = StateInput(state) if action is None else ActionInput(state, action)
        role = self.roles.v if action is None else self.roles.q
        me = GAME.player_names[GAME.current_player(state)]
        self[role.messages(inp)[-1].content] = f"I put {me} at {value:+.2f}.\nfinal_evaluation: {value:+.2f}"


@pytest.mark.parametrize("value", ["q", "both"])
@pytest.mark.parametrize("kind", ["td", "lambda"])
def test_with_an_exact_critic_targets_are_exact_in_the_mean(session, kind, value):
    one = session(
        targets={"kind": kind, "value": value, "trace": 0.6, "continuations": 9, "texts_min": 40, "texts_max": 40},
        rollout={"samples_per_state": 64, "samples_at_start": 64, "games": 2},
    )
    said = Exact(one.student_roles)
    for state in oracle_for(GAME).table.states:
        if not GAME.is_terminal(state):
            for action in (None, *GAME.legal_actions(state)):
                said.say(state, action)
    one.student.router.put_weights("critic", "exact", dict(said))
    one.versions["critic"] = "exact"
    stages(one, run_rollout, run_targets)
    found = defaultdict(list)
    for record in records(one, "targets"):
        found[GAME.parse_text(record["state"]), record["action"]].append(record["verdict"])
    errors = []
    for (state, action), verdicts in found.items():
        exact = said.oracle.value(state) if action is None else said.oracle.q_values(state)[action]
        errors.append(sum(verdicts) / len(verdicts) - exact)
    assert len(errors) > 20
    assert max(map(abs, errors)) < 0.2  # 360 samples each; the policy's own 64 answers a state are a sample, too
    assert abs(sum(errors) / len(errors)) < 0.02


# -- values of positions -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mc", "td"])
def test_with_both_the_critic_learns_positions_beside_moves(session, watched, kind):
    one = session(model=watched.config, targets={"value": "both", "kind": kind}, critic={"replay_fraction": 0})
    stages(one)
    found = records(one, "targets")
    seen = visits(GAME, records(one, "rollout"))
    assert {GAME.parse_text(r["state"]) for r in found if r["action"] is None} == set(seen)
    assert {r["action"] for r in found if GAME.parse_text(r["state"]) == START} == {None, *range(9)}
    taught = [e.messages[-1].content for e in watched.fits[0].examples]
    assert Counter(prompt.split("\n")[0] for prompt in taught) == {
        V: sum(r["action"] is None for r in found),
        Q: sum(r["action"] is not None for r in found),
    }


def test_look_aheads_end_in_texts_about_positions_then(session, watched):
    one = session(model=watched.config, targets={"value": "both", "kind": "td"})
    stages(one, run_rollout, run_targets)
    assert prompts(watched, V)
    assert not prompts(watched, Q)


def test_samples_of_a_position_begin_with_the_policys_own_moves(session):
    one = session(targets={"value": "v", "continuations": 9, "texts_min": 8, "texts_max": 8})
    stages(one, run_rollout, run_targets, run_policy_table)
    (table,) = one.workers[0].call("policy_table", job(one, START)).result()
    firsts = Counter(
        int(sample.split()[0][1]) - 1
        for record in records(one, "targets")
        for sample in record["samples"]
        if record["ply"] == 0
    )
    assert set(firsts) <= set(table)
    assert all(record["action"] is None for record in records(one, "targets"))


def job(one, state):
    from nlrl.orchestration.worker import TableJob

    return TableJob("base", 1.0, [state], [0])


def test_a_critic_of_positions_evaluates_candidates_by_look_aheads(session, watched):
    one = session(model=watched.config, targets={"value": "v", "kind": "td"})
    stages(one)
    assert not prompts(watched, Q)
    assert {example.messages[-1].content.split("\n")[0] for example in watched.fits[0].examples} >= {V}
    for record in records(one, "improvement"):
        state = GAME.parse_text(record["state"])
        assert {c["action"] for c in record["candidates"]} == set(GAME.legal_actions(state))
        assert not any("outlooks" in c["text"] for c in record["candidates"])  # evidence the policy will not have
    spent = one.folder.stage(1, "improvement").load()["metrics"]
    assert spent["failed"] == 0
    winning = after(0, 3, 1, 4)  # O wins at 3
    (said,) = evaluate_moves(one, [(winning, 2)]).values()
    assert said.verdict == 1


@pytest.mark.slow
@pytest.mark.parametrize("value", ["q", "v", "both"])
@pytest.mark.parametrize("kind", ["td", "lambda"])
def test_every_kind_of_target_makes_the_actor_win_more(small_config, tmp_path, value, kind):
    learning = {
        "iterations": 2,
        "rollout": {"games": 48, "samples_per_state": 1, "samples_at_start": 32},
        "targets": {"kind": kind, "value": value, "texts_min": 1, "texts_max": 1, "continuations": 6, "trace": 0.8},
        "improvement": {"verdict": "greedy"},
        "evaluation": {"games": 0, "opponents": ["random"], "value_states": 1, "probes": ["1 5 9"]},
    }
    folder = RunFolder(run(small_config(tmp_path / "run", **learning)).path)
    wins = [folder.stage(i, "evaluation").load()["metrics"]["exact"]["against"]["random"]["win"] for i in range(3)]
    assert max(wins[1:]) > wins[0] + 0.03


# -- values against named opponents ------------------------------------------------------------------------------------
AWARE = {"targets": {"opponent_aware": True}, "rollout": {"opponents": ["random", "minimax"], "games": 32}}


def test_a_critic_that_is_told_the_opponent_learns_a_value_against_each(session, watched):
    one = session(**AWARE, model=watched.config, critic={"replay_fraction": 0})
    stages(one, run_rollout, run_targets, run_critic)
    found = records(one, "targets")
    assert {record["against"] for record in found} == {"random", "minimax"}
    for name in ("random", "minimax"):
        met = visits(GAME, [record for record in records(one, "rollout") if record["opponent"] == name])
        assert {GAME.parse_text(r["state"]) for r in found if r["against"] == name} == set(met)
    taught = [example.messages[-1].content for example in watched.fits[0].examples]
    lines = Counter(prompt.split("\n")[-1] for prompt in taught)
    assert lines == Counter(f"against {record['against']}" for record in found)
    plain = one.student_roles.q.messages(ActionInput(START, 4))[-1].content
    assert one.student_roles.q.messages(ActionInput(START, 4, "random"))[-1].content == f"{plain}\nagainst random"


def test_its_games_are_played_on_against_that_opponent(session):
    one = session(**AWARE)
    tasks = [
        ContinuationTask(after(4, 0, 1), 3, 2, 30, seed=1, opponents=("first-move",)),
        ContinuationTask(after(4, 0, 1), 3, 2, 30, seed=1),
    ]
    job = ContinueJob("base", 1.0, ("random",), tasks)
    named, others = one.workers[0].call("continue_games", job).result()
    assert len({sample.actions[1] for sample in named}) == 1
    assert len({sample.actions[1] for sample in others}) > 2


def test_candidates_are_spoken_for_by_the_text_nearest_to_the_weighted_mean(session, watched):
    one = session(**AWARE, model=watched.config, improvement={"verdict": "greedy"})
    stages(one)
    met = defaultdict(Counter)
    for record in records(one, "rollout"):
        state = START
        for action in record["actions"]:
            met[state][record["opponent"]] += 1
            state = GAME.apply(state, action).state
    checked = 0
    for record in records(one, "improvement"):
        state = GAME.parse_text(record["state"])
        for candidate in record["candidates"]:
            said = {
                name: one.critic.generate([ask_q(one, state, candidate["action"], name)])[0].text for name in met[state]
            }
            verdicts = {name: float(text.rsplit(" ", 1)[1]) for name, text in said.items()}
            mean = sum(met[state][n] * v for n, v in verdicts.items()) / sum(met[state].values())
            nearest = min(abs(v - mean) for v in verdicts.values())
            assert abs(candidate["verdict"] - mean) == pytest.approx(nearest)
            checked += len(set(verdicts.values())) > 1
    assert checked > 5


def ask_q(one, state, action, against):
    from nlrl.backbones.language_model import Request

    return Request(one.student_roles.q.messages(ActionInput(state, action, against)), sampling=one.sampling(0.0))


def test_weights_move_the_mean():
    low, middle, high = (Evaluation(str(v), v) for v in (-1.0, 0.2, 1.0))
    assert nearest_to_mean([low, middle, high], [1, 1, 1]) == middle
    assert nearest_to_mean([low, middle, high], [8, 1, 1]) == low
    assert nearest_to_mean([low, middle, high], [0, 1, 9]) == high


# -- self-play ---------------------------------------------------------------------------------------------------------
def test_values_against_itself_are_the_oracles(session):
    one = session(rollout={"opponents": ["self"], "games": 24}, evaluation={"value_states": 0})
    stages(one)
    table = read_table(one, 1)
    policy = TabularPolicy({s: {a: n / m.total() for a, n in m.items()} for s, m in table.items()}, "table")
    oracle = oracle_for(GAME).policy_value(policy)
    pairs = [
        (GAME.parse_text(record["state"]), candidate["action"])
        for record in records(one, "improvement")
        for candidate in record["candidates"]
    ]
    values = action_values(GAME, table, one.exact_opposition(), pairs)
    for state, action in pairs:
        assert values[state, action] == pytest.approx(oracle.q_values(state)[action])
    scores = run_evaluation(one, 1)["texts"]["against_policy"]["text"]
    assert scores["count"] == len(pairs)
    assert scores["mae"] < 0.35


def test_against_a_pool_and_itself_they_are_the_mean(session):
    one = session(rollout={"opponents": ["self", "random"], "games": 24})
    stages(one, run_rollout, run_policy_table)
    table, state = read_table(one, 1), value_states(one, 1, list(visits(GAME, records(one, "rollout"))))[0]
    pairs = [(state, action) for action in GAME.legal_actions(state)]
    random = make_opponent("random", GAME)
    alone, against = action_values(GAME, table, [None], pairs), action_values(GAME, table, [random], pairs)
    both = action_values(GAME, table, one.exact_opposition(), pairs)
    for pair in pairs:
        assert both[pair] == pytest.approx((alone[pair] + against[pair]) / 2)


def test_self_play_is_repeatable_with_temporal_differences(small_config, tmp_path, committed_files):
    changes = {
        "iterations": 1,
        "rollout": {"opponents": ["self"], "games": 8},
        "targets": {"kind": "lambda", "value": "both"},
    }
    first = run(small_config(tmp_path / "first", **changes)).path
    changes["rollout"]["workers"] = 4
    second = run(small_config(tmp_path / "second", **changes)).path
    assert committed_files(first) == committed_files(second)


def test_prompts_about_positions_name_an_opponent_only_if_told(session):
    role = session().student_roles.v
    plain = role.messages(StateInput(START))[-1].content
    assert role.messages(StateInput(START, "minimax"))[-1].content == f"{plain}\nagainst minimax"

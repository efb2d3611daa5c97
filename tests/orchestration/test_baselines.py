"""The baselines run, resume and spend like every method, and each learns from what it says it learns from."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from nlrl.agents.language import line_of
from nlrl.agents.roles import StateInput
from nlrl.envs import make
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.budget import spent_by
from nlrl.orchestration.config import TabularConfig, to_toml
from nlrl.orchestration.fits import PolicyFit, PreferenceFit, ValueFit
from nlrl.orchestration.loop import run
from nlrl.orchestration.methods import dpo, grpo, ppo, rejection_sampling, scalar_q, tabular, teacher_only
from nlrl.orchestration.methods.tabular import EpsilonGreedy, QTable
from nlrl.orchestration.players import Play
from nlrl.orchestration.report import evaluations
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages.decisions import decisions, games_of, gathered, rewards_of, run_sampled_rollout
from nlrl.orchestration.stages.rollout import run_rollout

LEARNING = ("rejection_sampling", "grpo", "ppo", "dpo", "scalar_q", "tabular")
METHODS = ("prompted", "teacher_only", *LEARNING)
TEACHER = {"targets": {"texts_max": 1, "continuations": 1}, "evaluation": {"opponents": ["random"]}}
"""The teacher decides in every state that it can meet; one game a move is enough to see how."""


def slow_ones(methods, *slow):
    return [pytest.param(method, marks=[pytest.mark.slow] if method in slow else []) for method in methods]


def changes(method, **more):
    return {"method": method, **(TEACHER if method == "teacher_only" else {}), **more}


def wins(folder, iteration):
    return evaluations(RunFolder(folder))[iteration]["exact"]["against"]["random"]["win"]


@pytest.mark.parametrize("method", slow_ones(METHODS, "dpo", "teacher_only"))
def test_what_a_crash_took_away_is_made_again_with_the_same_bytes(
    method, small_config, committed_files, tmp_path, monkeypatch
):
    """What is on disk decides: a stage that is gone is made again, weights and value heads included."""
    config = small_config(tmp_path / "run", **changes(method, rollout={"games": 24}))
    folder = run(config).path
    whole = committed_files(folder)
    assert verify(folder) == []
    for stage in [stage for stage in RunFolder(folder).stages() if stage.iteration == 2]:
        if stage.name in ("actor", "evaluation", "games", "decisions"):
            shutil.rmtree(stage.dir)
    shutil.rmtree(folder / "agent", ignore_errors=True)
    run(config)
    assert committed_files(folder) == whole
    assert {stage.iteration for stage in RunFolder(folder).stages()} == {0, 1, 2}
    spent = spent_by(RunFolder(folder).stages())
    assert (spent.environment_steps > 0) == (method != "prompted")
    assert (spent.generated_tokens > 0) == (method not in ("prompted", "tabular"))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "stage"), [("ppo", "actor"), ("scalar_q", "returns"), ("tabular", "games")])
def test_a_run_killed_at_work_ends_with_the_same_bytes(method, stage, small_config, committed_files, tmp_path):
    whole = committed_files(run(small_config(tmp_path / "whole", method=method)).path)
    (tmp_path / "config.toml").write_text(to_toml(small_config(tmp_path / "run", method=method)))
    command = [str(Path(sys.executable).with_name("nlrl")), "run", str(tmp_path / "config.toml")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    begun = tmp_path / "run" / "iterations" / "002" / stage
    while process.poll() is None and not begun.exists():
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert committed_files(tmp_path / "run") == whole


@pytest.mark.parametrize("method", slow_ones([m for m in LEARNING if m != "tabular"], "dpo", "scalar_q"))
def test_learning_by_heart_wins_more(method, small_config, tmp_path):
    folder = run(small_config(tmp_path / "run", **changes(method, rollout={"games": 200}))).path
    assert wins(folder, 2) > wins(folder, 0) + 0.03


def test_what_is_spent_stops_a_run_and_a_larger_budget_goes_on(small_config, tmp_path):
    def last(steps):
        config = small_config(tmp_path / "run", method="grpo", iterations=50, budget={"environment_steps": steps})
        folder = run(config)
        spent = spent_by(folder.stages(), max(evaluations(folder)) - 1).environment_steps
        assert spent < steps <= spent_by(folder.stages()).environment_steps
        return max(evaluations(folder))

    few = last(200)
    assert 0 < few < last(800) < 50


def test_tokens_are_a_budget_too(small_config, tmp_path):
    folder = run(small_config(tmp_path / "run", method="grpo", iterations=50, budget={"tokens": 1}))
    assert max(evaluations(folder)) == 1


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_policy_gradients_refuse_another_temperature(method, small_config, tmp_path):
    with pytest.raises(NLRLError, match=r"rollout\.temperature"):
        run(small_config(tmp_path / "run", method=method, rollout={"temperature": 0.7}))


@pytest.mark.parametrize("method", ["grpo", "ppo", "dpo", "scalar_q"])
def test_models_that_are_tuned_on_texts_alone_are_refused(method, small_config, tmp_path):
    model = {"kind": "vllm", "name": str(tmp_path), "style": "plain", "tuning": {}}
    with pytest.raises(NLRLError, match=rf"method is '{method}'.* needs model.kind 'native', not 'vllm'"):
        run(small_config(tmp_path / "run", method=method, model=model))


# -- what is learned from ----------------------------------------------------------------------------------------------
def played(session, **more):
    """A session with the games of its first iteration."""
    one = session(rollout={"games": 64, "samples_per_state": 4, "samples_at_start": 8}, **more)
    run_sampled_rollout(one, 1)
    return one


def record(seat, moves, result):
    """A game of Tic-Tac-Toe as it is kept; the policy said `moves` where it was its turn."""
    turns = [{"ply": at, "reply": f"best_move: {moves[at]}"} for at in range(seat, len(moves), 2)]
    start = make("tictactoe").to_text(make("tictactoe").initial_states()[0])
    actions = [move - 1 for move in moves]
    return {"start": start, "actions": actions, "seat": seat, "turns": turns, "result": result}


def outcomes(session, *game):
    language = session().student_roles.policy.language
    return [decision.outcome for decision in decisions(language.game, language, record(*game))]


def test_a_loss_is_seen_although_the_opponent_makes_the_last_move(session):
    found = outcomes(session, 1, [1, 4, 2, 5, 3], "loss")  # O completes 1-2-3; X had moved twice
    assert found == [-1.0, -1.0]
    assert rewards_of(found) == [0.0, -1.0]


def test_a_win_and_a_forfeit_are_seen(session):
    assert rewards_of(outcomes(session, 0, [1, 4, 2, 5, 3], "win")) == [0.0, 0.0, 1.0]
    one = session()
    game = record(0, [1, 4], "forfeit") | {"turns": [{"ply": 0, "reply": "best_move: 1"}, {"ply": 2, "reply": "?"}]}
    found = list(decisions(one.game, one.student_roles.policy.language, game))
    assert [decision.outcome for decision in found] == [-1.0, -1.0]
    assert [decision.action for decision in found] == [0, None]


def test_every_lost_game_of_a_rollout_ends_in_a_reward_of_minus_1(session):
    one = played(session)
    lost = [game for game in games_of(one, 1) if game[0].outcome < 0]
    assert len(lost) > 10
    assert all(rewards_of([d.outcome for d in game]) == [0.0] * (len(game) - 1) + [-1.0] for game in lost)


def test_records_keep_answers_as_they_were_sampled(session):
    one = played(session)
    for decision in (decision for game in games_of(one, 1) for decision in game):
        assert bytes(decision.tokens).decode() == decision.text  # the scripted model's tokens are bytes
        assert len(decision.logprobs) == len(decision.tokens)
    plain = session()
    run_rollout(plain, 1)
    assert "sampled" not in next(plain.folder.stage(1, "rollout").records())["turns"][0]


def test_equal_answers_are_one_with_their_mean(session):
    one = played(session)
    found = [decision for game in games_of(one, 1) for decision in game]
    answers = gathered((decision, (decision.outcome,)) for decision in found)
    assert sum(answer.count for answer in answers) == len(found) > len(answers)
    first = max(answers, key=lambda answer: answer.count)
    same = [d.outcome for d in found if (d.state, d.text) == (first.decision.state, first.decision.text)]
    assert first.means == (pytest.approx(sum(same) / len(same)),)


@pytest.mark.parametrize("group", ["state", "seat"])
def test_grpos_advantages_cancel_within_their_groups(group, session, watched):
    one = played(session, method="grpo", grpo={"group": group}, model=watched.config)
    grpo.run_actor(one, 1)
    fit = watched.fits[-1]
    assert isinstance(fit.settings, PolicyFit)
    assert not fit.settings.head
    totals, sizes = Counter(), Counter()
    for answer, advantage in zip(*advantages(one, group), strict=True):
        rival = answer.decision.state if group == "state" else "all"
        totals[answer.decision.seat, rival] += answer.count * advantage
        sizes[answer.decision.seat, rival] += 1
    assert all(abs(total) < 1e-9 for key, total in totals.items() if sizes[key] > 1)
    assert max(example.advantage for example in fit.examples) > 0 > min(example.advantage for example in fit.examples)


def advantages(session, group):
    answers = gathered((d, (d.outcome,)) for game in games_of(session, 1) for d in game)
    return answers, grpo.relative(session.config.grpo.model_copy(update={"group": group}), answers)


def test_in_a_state_the_better_answer_has_the_greater_advantage(session):
    one = played(session)
    by_state = defaultdict(list)
    for answer, advantage in zip(*advantages(one, "state"), strict=True):
        by_state[answer.decision.state].append((answer.means[0], advantage))
    rivals = [found for found in by_state.values() if len({mean for mean, _ in found}) > 1]
    assert len(rivals) > 5
    for found in rivals:
        assert [mean for mean, _ in sorted(found)] == [mean for mean, _ in sorted(found, key=lambda pair: pair[1])]
        assert max(found)[1] > 0 > min(found)[1]


def test_ppo_learns_values_and_advantages_from_every_decision(session, watched):
    one = played(session, method="ppo", model=watched.config)
    ppo.run_actor(one, 1)
    fit = watched.fits[-1]
    assert fit.settings.head
    assert fit.settings.loss["value"] == one.config.ppo.value
    games = games_of(one, 1)
    assert sum(example.weight for example in fit.examples) == sum(map(len, games))
    returns = [example.return_ for example in fit.examples]
    assert min(returns) == -1
    assert max(returns) == 1
    assert all(example.value == 0 for example in fit.examples)  # a new head
    manifest = one.folder.stage(1, "actor").load()
    assert set(manifest["files"]) == {"weights.safetensors", "value_head.safetensors"}


def test_rejection_sampling_keeps_answers_of_won_games_alone(session):
    one = played(session, method="rejection_sampling")
    won = Counter((d.state, d.text) for game in games_of(one, 1) for d in game if d.outcome > 0)
    found = list(rejection_sampling.accepted(one, 1))
    assert Counter({e.completion: 0 for e in found}).keys() == {text for _, text in won}
    assert sum(example.weight for example in found) == won.total()


def test_draws_count_as_much_as_the_config_says(session):
    one = played(session, method="rejection_sampling", rejection_sampling={"draw_weight": 0.5})
    counts = Counter(d.outcome for game in games_of(one, 1) for d in game)
    assert counts[0.0] > 0
    total = sum(example.weight for example in rejection_sampling.accepted(one, 1))
    assert total == pytest.approx(counts[1.0] + 0.5 * counts[0.0])


def test_dpo_prefers_what_i_chose_to_what_was_played(session, watched):
    one = session(method="dpo", model=watched.config, rollout={"games": 32})
    for name, stage in dpo.METHOD.stages[:-1]:
        with one.spending(1, name):
            stage(one, 1)
    fit = watched.fits[-1]
    assert isinstance(fit.settings, PreferenceFit)
    choices = {one.game.parse_text(r["state"]): r for r in one.folder.stage(1, "improvement").records()}
    prompts = {one.student_roles.policy.messages(StateInput(state)): state for state in choices}
    played = dpo.answers_by_move(one, 1)
    assert fit.examples
    for pair in fit.examples:
        state = prompts[pair.messages]
        texts, _ = played[state]
        assert pair.chosen == choices[state]["target"]
        assert pair.rejected in {text for move, text in texts.items() if move != choices[state]["action"]}
        assert 0 < pair.weight <= 1


def test_the_scalar_critic_learns_mean_returns_and_its_best_move_is_chosen(session, watched):
    one = session(method="scalar_q", model=watched.config, rollout={"games": 32})
    for name, stage in scalar_q.METHOD.stages:
        with one.spending(1, name):
            stage(one, 1)
    critic, actor = watched.fits
    assert isinstance(critic.settings, ValueFit)
    game, ends = one.game, 0
    for r in one.folder.stage(1, "returns").records():
        state = game.parse_text(r["state"])
        after = game.apply(state, r["action"]).state
        if game.is_terminal(after):
            ends += 1
            assert (r["games"], r["mean"]) == (1, game.returns(after)[game.current_player(state)])
        assert -1 <= r["mean"] <= 1
    assert ends > 3
    for r in one.folder.stage(1, "improvement").records():
        assert r["values"][str(r["action"])] == max(r["values"].values())
        assert r["target"].endswith(f"best_move: {r['action'] + 1}")
    assert actor.examples
    metrics = one.folder.stage(1, "evaluation").load()["metrics"]
    assert metrics["argmax"]["against"].keys() == metrics["exact"]["against"].keys()


def test_the_teacher_chooses_the_best_of_what_g1_says_and_more_evidence_is_added(session):
    one = session(**changes("teacher_only"))
    for iteration in (1, 2):
        for name, stage in teacher_only.METHOD.stages:
            with one.spending(iteration, name):
                stage(one, iteration)
    first, second = (list(one.folder.stage(i, "decisions").records()) for i in (1, 2))
    for r in (*first, *second):
        verdicts = {c["action"]: c["verdict"] for c in r["candidates"]}
        assert verdicts[r["action"]] == max(verdicts.values())
    assert {len(said) for r in first for said in r["said"].values()} == {1}
    both = {r["state"] for r in first} & {r["state"] for r in second}
    assert len(both) > 10
    assert any(
        r["said"][str(c["action"])][0] != {"text": c["text"], "verdict": c["verdict"]}
        for r in second
        if r["state"] in both
        for c in r["candidates"]
    )


# -- the table without a language --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["monte_carlo", "q_learning"])
def test_a_table_learns_to_win(kind, small_config, tmp_path):
    config = small_config(
        tmp_path / "run", method="tabular", tabular={"kind": kind}, iterations=4, rollout={"games": 400}
    )
    folder = run(config).path
    assert wins(folder, 4) > wins(folder, 0) + 0.15
    steps = spent_by(RunFolder(folder).stages()).environment_steps
    assert 4 * 400 * 5 < steps < 4 * 400 * 9


def test_the_table_moves_towards_returns_by_means_or_steps():
    game = make("tictactoe")
    state = game.initial_states()[0]
    table = QTable(game)
    for target in (1.0, 0.0, 0.5):
        table.learn(state, 4, target, 0.0)
    assert table.value(state, 4) == pytest.approx(0.5)
    table.learn(state, 4, 1.0, 0.25)
    assert table.value(state, 4) == pytest.approx(0.625)
    again = QTable(game)
    again.read(table.rows())
    assert (again.values, again.visits) == (table.values, table.visits)


def test_q_learning_looks_one_decision_ahead_and_monte_carlo_at_the_end():
    """After a game that was lost by its last move, Q-learning blames that decision alone."""
    game, moves = make("tictactoe"), [1, 4, 2, 9, 3]
    line = line_of(game, game.initial_states()[0], [move - 1 for move in moves])
    for kind, expected in (("q_learning", [0.0, -1.0]), ("monte_carlo", [-1.0, -1.0])):
        table, settings = QTable(game), TabularConfig(kind=kind, step_size=1.0)
        p = Play(line.end, 1, "random", Rng(0), actions=list(line.actions), outcomes=[0] * len(moves))
        assert tabular.learn_from(game, table, settings, line.start, p) == -1
        assert [table.value(line.states[at], line.actions[at]) for at in (1, 3)] == expected


def test_in_a_maze_a_table_learns_the_shortest_way(small_config, tmp_path):
    maze, evaluation = {"name": "maze", "params": {"layout": "umaze"}}, {"opponents": ["none"], "probes": []}
    alone = {"game": maze, "rollout": {"games": 100, "opponents": ["none"]}, "tabular": {"epsilon_decay": 0.5}}
    config = small_config(tmp_path / "run", method="tabular", iterations=3, **alone, evaluation=evaluation)
    exact = evaluations(run(config))[3]["exact"]
    assert exact["against"]["none"]["return"] == exact["optimum"] == -2.5


def test_an_untaught_table_prefers_nothing_and_epsilon_explores():
    game = make("tictactoe")
    table, state = QTable(game), game.initial_states()[0]
    assert len({table.greedy(state, Rng(i)) for i in range(100)}) == 9
    table.learn(state, 4, 1.0, 0.0)
    assert {table.greedy(state, Rng(i)) for i in range(20)} == {4}
    replies = EpsilonGreedy(table, 1.0).draw([state] * 100, [0] * 100, [Rng(i) for i in range(100)])
    assert len({reply.output.action for reply in replies}) > 5

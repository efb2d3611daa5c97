"""Runs on games for one player, with chance, and too large to list: they learn, repeat, and say what is true."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from rich.console import Console

from nlrl.agents.language import language_of
from nlrl.envs import make, make_from_spec
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.exact import action_values, optimal_values
from nlrl.orchestration.lines import line_of_record
from nlrl.orchestration.loop import run
from nlrl.orchestration.players import RESULTS
from nlrl.orchestration.report import headline, report
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.policy_table import read_table, run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout, visits
from nlrl.orchestration.stages.targets import run_targets
from nlrl.orchestration.stages.training import run_critic

SLIPPERY = "frozen_lake(layout=random,maps=4,slippery=True)"
MAZE = "maze(layout=umaze,observed=full)"
BREAKTHROUGH = "breakthrough(columns=3,rows=4)"
TINY = "breakthrough(columns=3,rows=3)"


def on(spec, **changes):
    """A small run's config on another game, with the model that follows its rules."""
    game = make_from_spec(spec)
    model = {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": spec}}
    base = {
        "game": {"name": game.name, "params": game.params},
        "model": model,
        "rollout": {"games": 24, "samples_per_state": 2, "samples_at_start": 2},
        "evaluation": {"opponents": ["none" if game.num_players == 1 else "random"], "probes": []},
    }
    for section, fields in changes.items():
        base[section] = base.get(section, {}) | fields if isinstance(fields, dict) else fields
    return base


def records(session, stage, iteration=1):
    return list(session.folder.stage(iteration, stage).records())


def metrics_of(folder, iteration, stage="evaluation"):
    return RunFolder(folder).stage(iteration, stage).load()["metrics"]


# -- whole runs --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("spec", [SLIPPERY, MAZE, TINY])
def test_a_run_is_whole_repeatable_and_can_be_printed(small_config, tmp_path, committed_files, spec):
    first = run(small_config(tmp_path / "first", **on(spec, iterations=1, targets={"states": 12}))).path
    workers = on(spec, iterations=1, rollout={"workers": 3}, targets={"states": 12})
    second = run(small_config(tmp_path / "second", **workers)).path
    assert committed_files(first) == committed_files(second)
    assert verify(first) == []
    assert report(first)
    alone = make_from_spec(spec).num_players == 1
    assert ("exact return" in headline(metrics_of(first, 1))) == alone
    assert "iteration 1" in (first / "evaluations.md").read_text().lower()


def test_walks_in_a_maze_become_shortest(small_config, tmp_path):
    learning = on(MAZE, iterations=6, rollout={"games": 60, "samples_per_state": 4}, targets={"continuations": 9})
    folder = run(small_config(tmp_path / "run", **learning)).path
    returns = [metrics_of(folder, i)["exact"]["against"]["none"]["return"] for i in range(7)]
    assert returns[-1] == metrics_of(folder, 6)["exact"]["optimum"] == -2.5
    assert returns[0] < -30


# -- records -----------------------------------------------------------------------------------------------------------
def test_games_with_chance_are_read_back_as_they_went(session):
    one = session(**on(SLIPPERY))
    run_rollout(one, 1)
    game, found = one.game, records(one, "rollout")
    assert {record["seat"] for record in found} == {0}
    assert {record["opponent"] for record in found} == {"none"}
    for record in found:
        line = line_of_record(game, record)
        over = game.is_terminal(line.end)
        assert over or len(line.actions) == game.max_length
        expected = "cut" if not over else "win" if game.returns(line.end)[0] else "loss"
        assert record["result"] == expected
        assert record["return"] == float(expected == "win")
    assert len({record["result"] for record in found}) > 1
    summary = one.folder.stage(1, "rollout").load()["metrics"]
    assert summary["return"] == sum(record["return"] for record in found) / len(found)


def test_visits_are_all_states_that_were_walked_through(session):
    one = session(**on(SLIPPERY))
    run_rollout(one, 1)
    found = records(one, "rollout")
    seen = Counter(state for record in found for state in line_of_record(one.game, record).states[:-1])
    visited = visits(one.game, found)
    assert {state: visit.count for state, visit in visited.items()} == seen
    assert list(visited) == list(visits(one.game, found[::-1]))
    assert all(visited[start].ply == 0 for start in one.game.initial_states() if start in visited)


def test_g1_is_told_whole_walks_with_their_ends(session):
    one = session(**on(SLIPPERY, targets={"continuations": 8}))
    run_rollout(one, 1)
    run_targets(one, 1)
    game, ends = one.game, Counter()
    for record in records(one, "targets"):
        for sample in record["samples"]:
            ends["goal" if "goal" in sample else "hole" if "hole" in sample else "out of steps"] += 1
        won = sum("goal" in sample for sample in record["samples"])
        assert record["verdict"] == pytest.approx(2 * won / len(record["samples"]) - 1, abs=0.005)
    assert set(ends) == {"goal", "hole", "out of steps"}
    assert game.max_length == 10


# -- exact values ------------------------------------------------------------------------------------------------------
def test_texts_are_compared_with_exact_values_on_the_scale_of_verdicts(session):
    one = session(**on(SLIPPERY, targets={"continuations": 9}, evaluation={"value_states": 0}))
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement):
        stage(one, 1)
    table, game = read_table(one, 1), one.game
    pairs = [
        (game.parse_text(record["state"]), candidate["action"], candidate["verdict"])
        for record in records(one, "improvement")
        for candidate in record["candidates"]
    ]
    exact = action_values(game, table, [], [(state, action) for state, action, _ in pairs])
    errors = [abs(verdict - exact[state, action]) for state, action, verdict in pairs]
    scores = run_evaluation(one, 1)["texts"]
    assert scores["against_policy"]["text"]["mae"] == pytest.approx(sum(errors) / len(errors), abs=1e-6)
    oracle, optimal = oracle_for(game), optimal_values(game, {state for state, _, _ in pairs})
    best = [2 * oracle.q_values(state)[action] - 1 for state, action, _ in pairs]
    assert [optimal[state, action] for state, action, _ in pairs] == pytest.approx(best)
    worse = [abs(verdict - value) for (_, _, verdict), value in zip(pairs, best, strict=True)]
    assert scores["against_optimal"]["text"]["mae"] == pytest.approx(sum(worse) / len(worse), abs=1e-6)


def test_the_policy_table_holds_all_that_chance_may_lead_to(session):
    one = session(**on(SLIPPERY))
    run_rollout(one, 1)
    run_policy_table(one, 1)
    table, game = read_table(one, 1), one.game
    for state, moves in table.items():
        for action in moves:
            assert all(game.is_terminal(s.state) or s.state in table for s in game.transitions(state, action))


# -- large games -------------------------------------------------------------------------------------------------------
def test_a_large_game_is_measured_by_games_and_by_its_solver(session):
    large = on(BREAKTHROUGH, evaluation={"exact_states": 10, "games": 4, "opponents": ["random", "first-move"]})
    one = session(**large)
    assert not one.is_small
    run_evaluation(one, 0)
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement):
        stage(one, 1)
    metrics = run_evaluation(one, 1)
    assert metrics["exact"] == {"against": {}}
    assert read_table(one, 1) == {}
    assert set(metrics["sampled"]["greedy"]) == {"random", "first-move"}
    assert metrics["turns"]["states"] > 50
    assert metrics["texts"]["against_policy"] == {}
    assert metrics["texts"]["against_optimal"]["text"]["count"] == metrics["texts"]["pairs"] > 0
    assert "won against random" in headline(metrics)
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report(one.folder.path))
    (row,) = [line for line in console.export_text().split("\n") if "│ first-move │" in line and "1 │" in line[:14]]
    assert f"{metrics['sampled']['greedy']['first-move']['win']['share']:.3f}" in row


def test_of_many_states_a_sample_is_labelled_and_improved(session):
    one = session(**on(BREAKTHROUGH, targets={"states": 6}, improvement={"states": 9}))
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement):
        stage(one, 1)
    labelled = {record["state"] for record in records(one, "targets")}
    improved = {record["state"] for record in records(one, "improvement")}
    assert len(labelled) == 6
    assert len(improved) == 9
    assert labelled < improved


def test_of_many_candidates_i_sees_the_best(session):
    one = session(**on(BREAKTHROUGH, improvement={"offered": 2, "verdict": "greedy"}, targets={"states": 6}))
    other = session(**on(BREAKTHROUGH, improvement={"verdict": "greedy"}, targets={"states": 6}))
    for session_ in (one, other):
        for stage in (run_rollout, run_targets, run_critic, run_improvement):
            stage(session_, 1)
    every = {record["state"]: record["candidates"] for record in records(other, "improvement")}
    narrowed = 0
    for record in records(one, "improvement"):
        all_ = sorted((c["verdict"] for c in every[record["state"]]), reverse=True)
        assert sorted((c["verdict"] for c in record["candidates"]), reverse=True) == all_[:2]
        narrowed += len(all_) > 2
    assert narrowed > 10


# -- refusals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rollout": {"opponents": ["minimax"]}}, r"rollout.opponents is \['minimax'\], but frozen_lake.*one player"),
        ({"evaluation": {"opponents": ["minimax"]}}, r"evaluation.opponents is \['minimax'\]"),
        ({"targets": {"opponent_aware": True}}, "targets.opponent_aware: .*one player"),
        ({"evaluation": {"probes": ["right"]}}, "probes: chance decides where 'right'"),
    ],
)
def test_what_a_game_for_one_player_cannot_have_is_refused(small_config, tmp_path, changes, complaint):
    fields = on("frozen_lake(slippery=True)")
    fields["evaluation"].pop("opponents")
    for section, given in changes.items():
        fields[section] = fields.get(section, {}) | given
    defaults = {"rollout": {"opponents": ["random"]}, "evaluation": {"opponents": ["random", "first-move", "minimax"]}}
    for section, given in defaults.items():
        fields[section] = given | fields.get(section, {})
    with pytest.raises(NLRLError, match=complaint):
        check(small_config(tmp_path / "run", **fields))


def test_a_maze_is_probed_by_moves_between_commas(session):
    from nlrl.orchestration.diary import probes

    one = session(**on(MAZE, evaluation={"probes": ["move down, move down", "move right"]}))
    start = one.game.initial_states()[0]
    found = probes(one)
    assert [probe.ply for probe in found] == [2, 1]
    assert found[0].state.cell == (start.row + 2, start.column)


def test_an_agent_that_walks_is_evaluated_like_one_that_plays(tmp_path, small_config):
    from nlrl.orchestration.evaluate_agent import evaluate_agent

    folder = run(small_config(tmp_path / "run", **on(MAZE, iterations=1))).path
    evaluate_agent(str(folder), MAZE, ("random",), 6, 0.0, 0, out=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    exact = metrics_of(folder, 1)["exact"]["against"]["none"]
    assert figures["exact"]["against"]["none"] == pytest.approx(exact)
    shares = figures["sampled"]["none"]
    assert sum(shares[result]["share"] for result in RESULTS[1]) == pytest.approx(1)
    assert shares["return"]["low"] <= shares["return"]["mean"] <= shares["return"]["high"]


def test_a_game_is_won_at_its_goal():
    lake, maze = make("frozen_lake"), make("maze", layout="umaze")
    goals = [s.state for s in lake.transitions(lake.parse_text("S _ _ _\n_ O _ O\n_ _ _ O\nO _ P G"), 2)]
    assert [lake.won(state, 0) for state in goals] == [lake.returns(state)[0] == 1 for state in goals]
    assert any(lake.won(state, 0) for state in goals)
    beside = maze.parse_text("#####\n#...#\n#.#@#\n#.#G#\n#####")
    assert maze.won(maze.apply(beside, 3).state, 0)
    assert not maze.won(beside, 0)
    assert language_of(maze).score_at(beside, 3) == -1

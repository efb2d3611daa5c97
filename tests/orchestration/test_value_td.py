"""Iterated language TD: look-aheads made once, labels that follow the critic, and figures beside those of guesses."""

from __future__ import annotations

import json

import pytest

from nlrl.agents.roles import StateInput
from nlrl.envs import make_from_spec
from nlrl.envs.breakthrough.baselines import GUESSES
from nlrl.envs.oracle import TabularOracle, oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.checks import check
from nlrl.orchestration.lines import replay
from nlrl.orchestration.loop import run
from nlrl.orchestration.report import headline, report
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.stages.training import run_critic
from nlrl.orchestration.stages.value_evaluation import run_value_evaluation
from nlrl.orchestration.stages.value_targets import positions, run_labels, run_look_aheads

SPEC = "breakthrough(columns=3,rows=3)"
GAME = make_from_spec(SPEC)


def on(**value_td):
    states = {"players": ["random", "first-move"], "games_per_pair": 6, "held_out": 12} | value_td.pop("states", {})
    return {
        "method": "value_td",
        "game": {"name": GAME.name, "params": GAME.params},
        "model": {"kind": "scripted", "name": "nlrl.testing.by_game_rules", "options": {"game": SPEC}},
        "value_td": {"policy": "random", "lookahead": 2, "variations": 2, "collected": 4, "states": states} | value_td,
        "evaluation": {"opponents": ["random"], "probes": []},
    }


def records(session, stage, iteration=0):
    return list(session.folder.stage(iteration, stage).records())


# -- look-aheads -------------------------------------------------------------------------------------------------------
def test_look_aheads_are_different_legal_and_no_longer_than_wanted(session):
    one = session(**on())
    run_look_aheads(one, 0)
    found = records(one, "lookaheads")
    assert {record["state"] for record in found} == {GAME.to_text(state) for state in positions(one).train}
    for record in found:
        lines = [tuple(line["actions"]) for line in record["lines"]]
        assert 1 <= len(lines) == len(set(lines)) <= 2
        for line in record["lines"]:
            end = replay(GAME, GAME.parse_text(record["state"]), line["actions"]).end
            assert line["open"] == (not GAME.is_terminal(end))
            assert len(line["actions"]) == 2 if line["open"] else len(line["actions"]) <= 2
    assert sum(len(record["lines"]) == 2 for record in found) > len(found) / 2


def test_a_fixed_policy_plays_both_sides(session):
    one = session(**on(policy="first-move"))
    run_look_aheads(one, 0)
    for record in records(one, "lookaheads"):
        state = GAME.parse_text(record["state"])
        (line,) = record["lines"]  # four equal ones are one
        for action in line["actions"]:
            assert action == GAME.legal_actions(state)[0]
            state = GAME.apply(state, action).state


def test_positions_are_held_out_for_good_and_shared_by_runs_of_a_folder(session):
    one, two = session(**on()), session(**on(variations=1))
    found = positions(one)
    assert not set(found.held_out) & set(found.train)
    assert len(found.held_out) == 12
    assert positions(two).path == found.path
    assert found.path.parent.parent == one.folder.path.parent


# -- labels ------------------------------------------------------------------------------------------------------------
def test_labels_carry_what_the_critic_says_of_the_ends_and_ends_are_true(session):
    one = session(**on(lookahead=3))
    run_look_aheads(one, 0)
    run_labels(one, 1)
    aheads = {record["state"]: record["lines"] for record in records(one, "lookaheads")}
    found = records(one, "targets", 1)
    assert len(found) == len(aheads)
    for record in found:
        state = GAME.parse_text(record["state"])
        me, values = GAME.current_player(state), []
        for line in aheads[record["state"]]:
            end = replay(GAME, state, line["actions"]).end
            if GAME.is_terminal(end):
                values.append(GAME.returns(end)[me])
            else:
                (said,) = one.critic.generate([request(one, end)])
                verdict = float(said.text.rsplit(" ", 1)[1])
                values.append(verdict if GAME.current_player(end) == me else -verdict)
        assert record["verdict"] == pytest.approx(sum(values) / len(values), abs=0.011)
        assert record["action"] is None


def request(one, state):
    from nlrl.backbones.language_model import Request

    return Request(one.student_roles.v.messages(StateInput(state)), sampling=one.sampling(0.0))


def test_look_aheads_stay_and_labels_follow_the_critic(session):
    one = session(**on())
    run_look_aheads(one, 0)
    for iteration in (1, 2):
        run_labels(one, iteration)
        run_critic(one, iteration)
    first, second = ({r["state"]: r for r in records(one, "targets", i)} for i in (1, 2))
    assert first.keys() == second.keys()
    assert any(first[state]["verdict"] != second[state]["verdict"] for state in first)
    for state in first:
        plain = [[s.split(" I put")[0] for s in r[state]["samples"]] for r in (first, second)]
        assert plain[0] == plain[1]


def test_the_critic_learns_positions_without_their_evidence(session, watched, monkeypatch):
    import sys

    from nlrl.testing.by_game_rules import GameRuleModel

    monkeypatch.setattr(sys.modules["watched_model"], "make_model", lambda: GameRuleModel(SPEC))
    one = session(**on() | {"model": watched.config, "critic": {"replay_fraction": 0}})
    run_look_aheads(one, 0)
    run_labels(one, 1)
    run_critic(one, 1)
    (fit,) = watched.fits
    assert fit.network == "critic"
    assert len(fit.examples) == len(records(one, "targets", 1))
    for example in fit.examples:
        assert example.messages[-1].content.startswith("Value the position.")
        assert "outlooks" not in example.completion


# -- evaluation --------------------------------------------------------------------------------------------------------
def test_held_out_verdicts_are_compared_with_exact_values_beside_guesses(session):
    one = session(**on())
    metrics = run_value_evaluation(one, 0)
    found = records(one, "evaluation")
    oracle = oracle_for(GAME)
    assert {GAME.parse_text(record["state"]) for record in found} == set(positions(one).held_out)
    right = 0
    for record in found:
        exact = oracle.value(GAME.parse_text(record["state"]))
        assert record["exact"] == exact
        right += record["verdict"] * exact > 0 or (record["verdict"] == 0 and 0.5)
    scores = metrics["values"]
    assert set(scores) == {"text", "constant", *GUESSES}
    assert scores["text"]["side_accuracy"] == pytest.approx(right / len(found))
    assert scores["text"]["side_low"] < scores["text"]["side_accuracy"] < scores["text"]["side_high"]
    guess = GUESSES["more pawns"]
    expected = [guess(GAME.board, s) == oracle.value(s) for s in positions(one).held_out]
    assert scores["more pawns"]["side_accuracy"] == pytest.approx(sum(expected) / len(expected))


def test_what_cannot_be_read_is_wrong(session, watched, monkeypatch):
    import sys

    from nlrl.testing import ScriptedModel

    monkeypatch.setattr(sys.modules["watched_model"], "make_model", lambda: ScriptedModel({"": "Hard to say."}))
    one = session(**on() | {"model": watched.config})
    scores = run_value_evaluation(one, 0)["values"]["text"]
    assert (scores["coverage"], scores["side_accuracy"]) == (0, 0)


def test_fewer_held_out_positions_may_be_measured(session):
    one = session(**on(measured=5))
    run_value_evaluation(one, 0)
    assert len(records(one, "evaluation")) == 5


# -- whole runs --------------------------------------------------------------------------------------------------------
def test_labels_become_true_where_the_critic_has_learned_what_follows(small_config, tmp_path):
    """A critic that learns by heart knows the positions of its set, and nothing of others."""
    fields = on(lookahead=1, variations=9, collected=40, states={"games_per_pair": 200, "held_out": 1})
    fields |= {"iterations": 7, "critic": {"buffer_iterations": 1}}
    folder = RunFolder(run(small_config(tmp_path / "run", **fields)).path)
    lines = {record["state"]: record["lines"] for record in folder.stage(0, "lookaheads").records()}
    known = [state for state in lines if all(follows(state, line) in lines for line in lines[state] if line["open"])]
    exact = TabularOracle(GAME).policy_value(_Uniform())
    errors = []
    for iteration in (1, 7):
        labels = {record["state"]: record["verdict"] for record in folder.stage(iteration, "targets").records()}
        rows = [abs(labels[state] - exact.value(GAME.parse_text(state))) for state in known]
        errors.append(sum(rows) / len(rows))
    assert len(known) > 100
    assert errors[0] > 0.2
    assert errors[1] < 0.05
    assert verify(folder.path) == []
    assert (folder.path / "agent").is_dir()
    metrics = folder.stage(7, "evaluation").load()["metrics"]
    assert headline(metrics).startswith("winner named rightly: text ")
    assert report(folder.path)
    assert metrics["budget"]["environment_steps"] == 0
    assert folder.stage(0, "lookaheads").load()["metrics"]["budget"]["environment_steps"] > 0


def follows(state, line):
    return GAME.to_text(replay(GAME, GAME.parse_text(state), line["actions"]).end)


class _Uniform:
    def policy(self, state):
        legal = GAME.legal_actions(state)
        return dict.fromkeys(legal, 1 / len(legal))


def test_a_run_is_repeatable_whoever_plays(small_config, tmp_path, committed_files):
    first = run(small_config(tmp_path / "a" / "run", **on() | {"iterations": 1})).path
    second = run(small_config(tmp_path / "b" / "run", **on() | {"iterations": 1, "rollout": {"workers": 3}})).path
    assert committed_files(first) == committed_files(second)
    assert json.loads((first / "iterations/000/lookaheads/manifest.json").read_text())["metrics"]["states"] > 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"game": {"name": "frozen_lake", "params": {}}}, "game: method 'value_td' plays both sides"),
        ({"value_td": {"policy": "nobody"}}, "value_td.policy: unknown opponent 'nobody'"),
        ({"value_td": {"states": {"players": ["nobody"]}}}, "value_td.states.players: unknown opponent 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_refused(small_config, tmp_path, changes, complaint):
    fields = on()
    if "frozen" in str(changes):
        fields["evaluation"] = {"opponents": ["none"], "probes": []}
    for section, given in changes.items():
        fields[section] = fields[section] | given if section == "value_td" else given
    with pytest.raises(NLRLError, match=complaint):
        check(small_config(tmp_path / "run", **fields))

"""A run meets its own past: checkpoints as opponents in rollouts, and rated in a league within the run."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from nlrl.envs import make
from nlrl.envs.opponents import make_opponent
from nlrl.errors import NLRLError
from nlrl.orchestration.check_texts import check_texts
from nlrl.orchestration.checkpoints import POOL, Standing, meanings, most_held, resolved
from nlrl.orchestration.checks import check
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.config import RolloutConfig, to_toml
from nlrl.orchestration.frozen import FrozenAgent, Source, agent_maker, open_frozen
from nlrl.orchestration.league import RATINGS_FILE, meetings, read_ratings
from nlrl.orchestration.loop import run
from nlrl.orchestration.models import state_bytes
from nlrl.orchestration.ratings import rate
from nlrl.orchestration.router import Router, ServedModel
from nlrl.orchestration.run_folder import RunFolder, verify
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics
from nlrl.orchestration.weight_sets import Resident

GAME = make("tictactoe")
OPPONENTS = ["random", "checkpoint(last)", "epsilon(0.5,checkpoint(random,temperature=1))"]
CHANGES = {
    "method": "rejection_sampling",
    "iterations": 4,
    "rollout": {"games": 48, "opponents": OPPONENTS, "samples_per_state": 4},
    "evaluation": {"games": 0, "opponents": ["random"]},
    "league": {"every": 2, "pairs": 3, "members": ["random", "checkpoint(all)"], "anchor": "random"},
}


@pytest.fixture(scope="module")
def trained(small_config, tmp_path_factory):
    """A run of four iterations that met its past in games and, twice, in a league. Read only."""
    return run(small_config(tmp_path_factory.mktemp("checkpoints") / "run", **CHANGES)).path


def records(folder, iteration, name):
    return list(RunFolder(folder).stage(iteration, name).records())


# -- what names mean ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("checkpoint(last)", ["checkpoint(4)"]),
        ("checkpoint(best)", ["checkpoint(2)"]),
        ("checkpoint(0)", ["checkpoint(0)"]),
        ("checkpoint(9)", ["checkpoint(5)"]),
        ("checkpoint(all)", [f"checkpoint({i})" for i in range(5)]),
        ("checkpoint(last,temperature=0.5)", ["checkpoint(4,temperature=0.5)"]),
        ("epsilon(0.25,checkpoint(last))", ["epsilon(0.25,checkpoint(4))"]),
        ("mixture(1,random,2,checkpoint(best))", ["mixture(1,random,2,checkpoint(2))"]),
        ("mcts(10,1)", ["mcts(10,1)"]),
        ("agent(runs/checkpoint)", ["agent(runs/checkpoint)"]),
        ("self", ["self"]),
    ],
)
def test_a_name_means_what_the_run_has_got_to(name, meant):
    standing = Standing(5, {0: 0.3, 1: 0.6, 2: 0.7, 5: 0.7 - 1e-9, 6: 0.9}, seed=0)
    assert meanings(name, standing.meant) == meant


@pytest.mark.parametrize("name", ["checkpoint(last)", "checkpoint(best)", "checkpoint(random)", "checkpoint(3)"])
def test_in_the_first_iteration_there_is_the_base_alone(name):
    assert meanings(name, Standing(0, {}, seed=0).meant) == ["checkpoint(0)"]


def test_random_is_a_bounded_sample_of_the_past_that_changes_and_repeats():
    pools = [meanings("checkpoint(random)", Standing(current, {}, seed=1).meant) for current in range(60)]
    assert all(len(pool) == min(max(current, 1), POOL) for current, pool in enumerate(pools))
    assert all(f"checkpoint({current})" not in pool for current, pool in enumerate(pools) if current)
    assert len({name for pool in pools for name in pool}) > 40
    assert pools[50] == meanings("checkpoint(random)", Standing(50, {}, seed=1).meant)
    assert pools[50] != meanings("checkpoint(random)", Standing(50, {}, seed=2).meant)


def test_names_are_drawn_alike_however_many_checkpoints_one_of_them_means():
    names = resolved(["random", "checkpoint(random)", "checkpoint(last)"], Standing(3, {}, seed=0))
    assert Counter(names) == {"random": 3, "checkpoint(0)": 1, "checkpoint(1)": 1, "checkpoint(2)": 4}
    assert resolved(["random", "self"], Standing(3, {}, seed=0)) == ("random", "self")


def test_so_many_weight_sets_are_wanted_at_a_time():
    assert most_held(["random", "checkpoint(0)", "checkpoint(last)", "epsilon(0.5,checkpoint(random))"]) == 1 + POOL
    assert most_held(["random", "agent(runs/checkpoint)"]) == 0


# -- in rollouts -------------------------------------------------------------------------------------------------------
def test_games_are_played_against_the_old_weights(trained):
    """What `checkpoint(2)` played is what the run's actor of iteration 2, opened by itself, plays; and no other's."""
    met = {i: {r["opponent"] for r in records(trained, i, "rollout")} for i in range(1, 5)}
    assert {"checkpoint(0)", "random"} < met[1]
    assert {"checkpoint(2)", "random"} < met[4]
    assert {name for name in met[4] if name.startswith("epsilon")} <= {
        f"epsilon(0.5,checkpoint({i},temperature=1))" for i in range(3)
    }
    moves = theirs(trained, 4, "checkpoint(2)")
    assert len(moves) > 5
    agents = {iteration: greedy(trained, iteration) for iteration in (1, 2, 3)}
    same = {i: moves == [(state, agent.policy(state)) for state, _ in moves] for i, agent in agents.items()}
    assert same == {1: False, 2: True, 3: False}


def theirs(folder, iteration, name):
    """(state, what the opponent of that name played there) in an iteration's games."""
    found = []
    for record in records(folder, iteration, "rollout"):
        state = GAME.initial_states()[0]
        for action in record["actions"]:
            if record["opponent"] == name and GAME.current_player(state) != record["seat"]:
                found.append((state, {action: 1.0}))
            state = GAME.apply(state, action).state
    return found


def greedy(folder, iteration) -> FrozenAgent:
    opened = open_frozen(Source(str(folder), iteration))
    agent = make_opponent("agent(x)", GAME, agent_maker(lambda _: opened, RolloutConfig(), 0))
    assert isinstance(agent, FrozenAgent)
    return agent


def test_values_of_the_policy_are_those_against_its_past(session):
    """Exact values know the checkpoints that the games drew among, and which of them played twice as often."""
    one = session(rollout={"opponents": ["checkpoint(last)", "random"]})
    one.iteration = 1
    assert [opponent.name for opponent in one.exact_opposition()] == ["checkpoint(0)", "random"]
    soft = session(rollout={"opponents": ["checkpoint(last,temperature=1)"]})
    assert soft.exact_opposition() is None


def test_texts_are_checked_later_against_the_past_that_the_iteration_met(small_config, tmp_path):
    rollout, evaluation = {"games": 8, "opponents": ["checkpoint(last)"]}, {"games": 0, "value_states": 8}
    folder = run(small_config(tmp_path / "run", iterations=3, rollout=rollout, evaluation=evaluation)).path
    assert {record["opponent"] for record in records(folder, 3, "rollout")} == {"checkpoint(1)"}
    told = RunFolder(folder).stage(3, "evaluation").load()["metrics"]["texts"]["against_policy"]["text"]
    again = check_texts(folder, parts=("verdicts",)).figures["verdicts"]["against_policy"]["text"]
    assert again["mae"]["value"] == pytest.approx(told["mae"], abs=1e-4)


# -- memory ------------------------------------------------------------------------------------------------------------
class Lanes:
    """An engine that only keeps books."""

    def __init__(self):
        self.lanes = {"default": "base"}

    def load_weights(self, state, version, name):
        self.lanes[name] = version

    def weight_versions(self):
        return dict(self.lanes)


def test_a_dropped_set_leaves_its_place_to_the_next():
    engine = Lanes()
    sets = Resident(engine)
    for iteration in range(1, 20):
        sets.put(f"actor@{iteration}", f"actor@{iteration}", {})
        if iteration > 2:
            sets.drop(f"actor@{iteration - 2}")
    assert len(engine.lanes) == 4
    assert sets.versions() == {"base", "actor@18", "actor@19"}
    assert engine.lanes[sets.find("actor@19")[0]] == "actor@19"
    assert not sets.has("actor@17")
    with pytest.raises(NLRLError, match="no weights 'actor@17'"):
        sets.find("actor@17")


def test_a_set_that_comes_back_takes_nobodys_place():
    engine = Lanes()
    sets = Resident(engine)
    sets.put("actor@1", "actor@1", {})
    sets.drop("actor@1")
    for name in ("actor@2", "actor@1", "actor", "actor@3"):
        sets.put(name, name, {})
    found = {name: sets.find(name) for name in ("actor@2", "actor@1", "actor", "actor@3")}
    assert [version for _, version in found.values()] == list(found)
    assert len({lane for lane, _ in found.values()}) == 4


def test_weights_are_held_as_long_as_an_iteration_needs_them(small_config, tmp_path, monkeypatch):
    held, most = set(), []
    put, drop = Router.put_weights, Router.drop_weights

    def putting(router, name, version, state):
        held.update({name} - {"actor", "critic"})
        most.append(len(held))
        put(router, name, version, state)

    def dropping(router, name):
        held.remove(name)
        drop(router, name)

    monkeypatch.setattr(Router, "put_weights", putting)
    monkeypatch.setattr(Router, "drop_weights", dropping)
    run(small_config(tmp_path / "run", **CHANGES | {"iterations": 5}))
    assert held <= {f"actor@{i}" for i in range(1, 4)}  # what the last rollouts could meet; the league's are gone
    assert max(most) <= 2 + POOL


def test_a_server_made_anew_is_given_checkpoints_again(session):
    one = session(rollout={"opponents": ["checkpoint(last)"]})
    one.put_weights("actor@1", "actor@1", {"a prompt": "an answer"})
    (server,) = one.student.router._servers
    server.call("drop_weights", "actor@1").result()  # as if it had died
    from nlrl.backbones.language_model import Message, Request

    served: ServedModel = one.student.with_weights("actor@1")
    (answer,) = served.generate([Request((Message("user", "a prompt"),))])
    assert (answer.text, answer.weight_version) == ("an answer", "actor@1")


def test_an_engine_shares_its_memory_among_all_sets():
    assert state_bytes(140, 1.0) == pytest.approx(140 / 2 / 3, abs=1)
    assert state_bytes(140, 1.0, more_sets=4) == 140 / 2 / 7


# -- in a league -------------------------------------------------------------------------------------------------------
def test_a_round_is_played_when_it_is_due_and_repeats_no_meeting(trained):
    rounds = [stage for stage in RunFolder(trained).stages() if stage.name == "league"]
    assert [stage.iteration for stage in rounds] == [2, 4]
    first, second = ([record["players"] for record in stage.records()] for stage in rounds)
    members = [{name for names in each for name in names} for each in (first, second)]
    assert members[0] == {"random"} | {f"checkpoint({i},temperature=1)" for i in range(3)}
    assert members[1] == {"random"} | {f"checkpoint({i},temperature=1)" for i in range(5)}
    pairs = [{frozenset(names) for names in each} for each in (first, second)]
    assert pairs[0].isdisjoint(pairs[1])
    assert (len(pairs[0]), len(pairs[1])) == (6, 9)  # of 15 in all
    assert (len(first), len(second)) == (6 * 6, 9 * 6)
    assert Counter(map(tuple, second))["random", "checkpoint(4,temperature=1)"] == 3  # each seat


def test_ratings_are_of_all_games_so_far_and_saved_with_the_round(trained):
    games = [record for i in (2, 4) for record in records(trained, i, "league")]
    expected = rate(meetings(games), "random")
    stage = RunFolder(trained).stage(4, "league")
    saved = read_ratings(stage.dir / RATINGS_FILE)
    assert [row.name for row in saved] == [row.name for row in expected]
    assert saved[0].rating == pytest.approx(expected[0].rating, abs=0.01)
    assert next(row.rating for row in saved if row.name == "random") == 0
    metrics = stage.load()["metrics"]
    assert metrics["agent"] == metrics["ratings"]["checkpoint(4,temperature=1)"]
    assert metrics["budget"]["environment_steps"] == sum(
        len(record["actions"]) for record in records(trained, 4, "league")
    )
    assert metrics["budget"]["generated_tokens"] > 0
    assert RATINGS_FILE in stage.load()["files"]
    assert verify(trained) == []


def test_ratings_are_tracked_and_shown(trained, capsys):
    tracked = {entry["step"]: entry["metrics"] for entry in read_metrics(trained / METRICS_FILE)}
    assert {"league/agent/rating", "league/agent/low", "league/games", "seconds/league"} <= tracked[4].keys()
    assert not [name for name in tracked[3] if "league" in name]
    assert run_cli(["report", str(trained)]) == 0
    printed = capsys.readouterr().out
    assert "League after iteration 4" in printed
    assert "checkpoint(3,temperature=1)" in printed


# -- kills -------------------------------------------------------------------------------------------------------------
def test_a_killed_run_ends_with_the_same_bytes(trained, small_config, tmp_path, committed_files):
    config, path = small_config(tmp_path / "run", **CHANGES), tmp_path / "config.toml"
    path.write_text(to_toml(config))
    command = [str(Path(sys.executable).with_name("nlrl")), "run", str(path)]
    for place in ("003/rollout", "004/league"):
        kill_in(command, tmp_path / "run/iterations" / place)
    run(config)
    assert committed_files(tmp_path / "run") == committed_files(trained)


def kill_in(command, stage):
    """Kills a command as soon as a stage has left something on disk."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not stage.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert stage.exists()


@pytest.mark.slow
def test_workers_and_servers_of_their_own_change_nothing(trained, small_config, tmp_path, committed_files):
    cluster = {"kind": "ray", "servers": 2}
    folder = run(small_config(tmp_path / "run", **CHANGES | {"cluster": cluster})).path
    assert committed_files(folder) == committed_files(trained)


# -- what is refused ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"opponents": ["checkpoint(first)"]}}, r"rollout.opponents: a checkpoint is checkpoint\(last\)"),
        ({"rollout": {"opponents": ["checkpoint()"]}}, "rollout.opponents: a checkpoint is"),
        ({"rollout": {"opponents": ["checkpoint(last,temperature=-1)"]}}, "temperature must be a number of at least 0"),
        ({"rollout": {"opponents": ["checkpoint(4)"]}}, r"checkpoint\(4\) meets nobody: the last one played is 3"),
        ({"rollout": {"opponents": ["checkpoint(all)"]}}, r"checkpoint\(all\) is for league.members"),
        ({"rollout": {"opponents": [f"checkpoint({i})" for i in range(4)] + ["checkpoint(last)"]}}, "5 checkpoints"),
        ({"evaluation": {"opponents": ["checkpoint(last)"]}}, "unknown opponent.*met in league.members"),
        ({"league": {"members": ["checkpoint(random)"]}}, r"league.members: checkpoint\(random\) is for rollout"),
        ({"league": {"members": ["nobody"]}}, "league.members: unknown opponent 'nobody'"),
        ({"league": {"members": ["self"]}}, "league.members: unknown opponent 'self'"),
        ({"league": {"members": ["agent(runs/nothing)"]}}, "league.members: there is no agent 'runs/nothing'"),
        ({"league": {"anchor": "minimax"}}, "league.anchor: 'minimax' is not a member of every round"),
        (
            {"league": {"members": ["random", "checkpoint(last)"], "anchor": "checkpoint(last)"}},
            "not a member of every",
        ),
        ({"method": "tabular"}, "method 'tabular' trains no actor, so there are no checkpoints to play"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(small_config, tmp_path, changes, message):
    tables = {key: CHANGES[key] | value if isinstance(value, dict) else value for key, value in changes.items()}
    with pytest.raises(NLRLError, match=message):
        check(small_config(tmp_path / "run", **CHANGES | tables))


def test_a_league_needs_a_game_for_two_and_somebody_to_meet(small_config, tmp_path):
    alone = {"game": {"name": "maze", "params": {"layout": "umaze"}}, "league": {"every": 1}}
    with pytest.raises(NLRLError, match=r"league\.every: a league is for games for two"):
        check(small_config(tmp_path / "run", **alone, evaluation={"opponents": [], "probes": []}))
    for members, message in (([], "league.members: .*at least 1"), (["random", "random"], "would meet itself")):
        with pytest.raises(NLRLError, match=message):
            small_config(tmp_path / "run", league={"members": members})


def test_agents_of_another_game_or_without_an_actor_are_refused(trained, tmp_path, capsys):
    command = ["league", str(tmp_path / "league"), "--members", "random", f"agent({trained})"]
    assert run_cli([*command, "--game", "breakthrough(rows=4,columns=3)"]) == 2
    assert "was trained on tictactoe and cannot play breakthrough" in capsys.readouterr().err
    assert not (tmp_path / "league").exists()

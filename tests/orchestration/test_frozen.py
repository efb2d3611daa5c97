"""Frozen agents as opponents: `agent(runs/first)` in rollouts, in evaluations and on the command line."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest

from nlrl.envs import make
from nlrl.envs.opponents import Opponent, make_opponent
from nlrl.envs.oracle import oracle_for
from nlrl.envs.random import Rng
from nlrl.errors import NLRLError
from nlrl.orchestration.cli import run_cli
from nlrl.orchestration.config import RolloutConfig
from nlrl.orchestration.exact import action_values, mixed_results
from nlrl.orchestration.frozen import FrozenModel, Source, agent_maker, describe, open_frozen, sources
from nlrl.orchestration.loop import run
from nlrl.orchestration.report import report
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.improvement import run_improvement
from nlrl.orchestration.stages.policy_table import run_policy_table
from nlrl.orchestration.stages.rollout import run_rollout
from nlrl.orchestration.stages.targets import run_targets
from nlrl.orchestration.stages.training import run_actor, run_critic
from nlrl.orchestration.worker import ContinuationTask, ContinueJob, PlayJob, RolloutWorker, game_tasks
from nlrl.testing import FaultyModel, ScriptedModel
from nlrl.testing.by_rules import RuleModel

GAME = make("tictactoe")
START = GAME.initial_states()[0]
OPEN = [state for state in oracle_for(GAME).table.states if not GAME.is_terminal(state)]
SPEECHLESS = ScriptedModel({"": "I pass."})


class Counting(RuleModel):
    """A model that counts its calls and how often each request came."""

    def __init__(self):
        super().__init__()
        self.asked, self.calls = Counter(), 0

    def generate(self, requests):
        self.calls += bool(requests)
        self.asked.update(requests)
        return super().generate(requests)


def frozen(name="agent(x)", model=None, samples=8, seed=0):
    """The opponent of that name; every agent in it is played by `model`."""
    opened = FrozenModel(model or RuleModel(), "plain", 96)
    config = RolloutConfig(samples_per_state=samples)
    return make_opponent(name, GAME, agent_maker(lambda source: opened, config, seed))


def worker(name, model, opponent_model=None):
    agents = {source: FrozenModel(opponent_model or RuleModel(), "plain", 96) for source in sources([name])}
    return RolloutWorker("tictactoe", model, "plain", 96, RolloutConfig(samples_per_state=3), 0, agents)


def play(name, model, opponent_model=None, games=20):
    tasks = game_tasks("test", 0, 1, "rollout", games, (name,))
    return worker(name, model, opponent_model).play(PlayJob("base", 1.0, tasks))


def rngs(count):
    return [Rng("frozen", i) for i in range(count)]


# -- as an opponent ----------------------------------------------------------------------------------------------------
def test_a_greedy_agent_is_an_exact_opponent_that_plays_one_legal_move():
    agent = frozen()
    assert isinstance(agent, Opponent)
    assert (agent.name, agent.exact) == ("agent(x)", True)
    for state in OPEN[::101]:
        (move,) = agent.policy(state)
        assert move in GAME.legal_actions(state)
        assert agent.policy(state) == {move: 1.0}
        assert set(agent.choose([state] * 5, rngs(5))) == {move}


def test_an_answer_is_asked_for_once_and_a_batch_at_a_time():
    model = Counting()
    agent = frozen(model=model)
    for _ in range(3):
        agent.choose(OPEN[:40] * 2, rngs(80))
    assert (len(model.asked), model.asked.total(), model.calls) == (40, 40, 1)


def test_a_temperature_samples_as_many_answers_as_the_rollout_keeps():
    model = Counting()
    agent = frozen("agent(x,temperature=1)", model, samples=6)
    assert not agent.exact
    moves = agent.choose([START] * 200, rngs(200))
    assert len(model.asked) == 6
    assert len(set(moves)) > 2
    with pytest.raises(NLRLError, match=r"'agent\(x,temperature=1\)' is known by its samples only"):
        agent.policy(START)
    assert moves == frozen("agent(x,temperature=1)", samples=6).choose([START] * 200, rngs(200))
    assert moves != frozen("agent(x,temperature=1)", samples=6, seed=1).choose([START] * 200, rngs(200))


@pytest.mark.parametrize("name", ["agent(x)", "agent(x,temperature=1)", "epsilon(0.5,agent(x,temperature=1))"])
def test_a_choice_depends_on_its_own_state_and_rng_only(name):
    states = OPEN[:30]
    together = frozen(name).choose(states, rngs(30))
    assert list(together) == [frozen(name).choose([s], [r])[0] for s, r in zip(states, rngs(30), strict=True)]


def test_no_move_in_a_terminal_state():
    won = next(state for state in oracle_for(GAME).table.states if GAME.is_terminal(state))
    with pytest.raises(LookupError, match="terminal"):
        frozen().choose([START, won], rngs(2))
    with pytest.raises(LookupError, match="terminal"):
        frozen().policy(won)


def test_it_may_be_part_of_another_opponent():
    agent, mixed = frozen(), frozen("epsilon(0.25,agent(x))")
    (move,) = agent.policy(START)
    assert (mixed.name, mixed.exact) == ("epsilon(0.25,agent(x))", True)
    assert mixed.policy(START)[move] == pytest.approx(0.75 + 0.25 / 9)
    assert not frozen("mixture(1,agent(x),1,agent(x,temperature=0.5))").exact


# -- forfeits ----------------------------------------------------------------------------------------------------------
def test_an_unreadable_answer_is_a_forfeit_after_the_retries():
    agent = frozen(model=SPEECHLESS)
    assert agent.choose([START], rngs(1)) == [None]
    assert agent.policy(START) == {None: 1.0}
    half = frozen("epsilon(0.5,agent(x))", SPEECHLESS)
    assert half.policy(START)[None] == 0.5
    assert 15 < list(half.choose([START] * 60, rngs(60))).count(None) < 45


def test_the_opponents_forfeit_is_a_win_and_ends_the_game():
    for record in play("agent(x)", RuleModel(), SPEECHLESS):
        assert record["result"] == "win"
        assert len(record["actions"]) == 1 - record["seat"]  # the policy's first move, if it is the first
        assert all(turn["failures"] == [] for turn in record["turns"])


def test_a_forfeit_ends_a_continuation_too():
    job = ContinueJob("base", 1.0, ("agent(x)",), [ContinuationTask(START, 0, 4, 3, seed=0)])
    (samples,) = worker("agent(x)", RuleModel(), SPEECHLESS).continue_games(job)
    assert [(sample.actions, sample.result) for sample in samples] == [((4,), "win")] * 3


def test_exact_results_count_forfeits_for_whom_they_are():
    table = {state: {GAME.legal_actions(state)[0]: 1.0} for state in OPEN}
    assert mixed_results(GAME, table, frozen(model=SPEECHLESS)) == (1, 0, 0, 0)
    assert action_values(GAME, table, [frozen(model=SPEECHLESS)], [(START, 0), (OPEN[5], 8)]) == {
        (START, 0): 1,
        (OPEN[5], 8): 1,
    }


# -- exact results -----------------------------------------------------------------------------------------------------
def test_exact_results_against_a_greedy_agent_are_the_games_it_plays():
    """Some answers of the opponent cannot be read, so that wins, losses and forfeits come up."""
    opponent = FaultyModel(RuleModel(), {"illegal": 0.5}, seed=3)
    records = play("agent(x)", RuleModel(), opponent, games=400)
    table: dict = {}
    for record in records:  # as often as it was played: the policy as it is known from the games
        state = START
        for action in record["actions"]:
            if GAME.current_player(state) == record["seat"]:
                table.setdefault(state, Counter())[action] += 1
            state = GAME.apply(state, action).state
    exact = mixed_results(GAME, table, worker("agent(x)", RuleModel(), opponent).opponent("agent(x)"))
    results = Counter(record["result"] for record in records)
    assert len(results) == 3
    for result in ("win", "draw", "loss"):
        assert getattr(exact, result) == pytest.approx(results[result] / 400, abs=0.02)


@pytest.mark.parametrize("name", ["agent(x)", "epsilon(0.25,agent(x))"])
def test_exact_results_ask_one_batch_a_ply(name):
    model = Counting()
    opponent = frozen(name, model)
    uniform = {s: dict.fromkeys(GAME.legal_actions(s), 1 / len(GAME.legal_actions(s))) for s in OPEN}
    mixed_results(GAME, uniform, opponent)
    assert model.calls <= 9
    assert max(model.asked.values()) == 1
    oracle = oracle_for(GAME).policy_value(uniform, {s: opponent.policy(s) for s in OPEN}, seat=0)
    pairs = [
        (state, action) for state in OPEN if GAME.current_player(state) == 0 for action in GAME.legal_actions(state)
    ]
    values = action_values(GAME, uniform, [opponent], pairs)
    for state, action in pairs[::97]:
        assert values[state, action] == pytest.approx(oracle.q_values(state)[action])


# -- names -------------------------------------------------------------------------------------------------------------
def test_sources_are_found_inside_other_opponents_once_each():
    names = [
        "random",
        "agent(a)",
        "epsilon(0.5,agent(runs/b,iteration=2))",
        "mixture(1,agent(a,temperature=1),2,random)",
    ]
    assert sources([*names, "mcts(10,1)"]) == [Source("a"), Source("runs/b", 2)]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("agent", r"unknown opponent 'agent'; known: random, .*agent\(folder_or_name\) or agent\(folder,temper"),
        ("agent(x,1)", "unknown opponent"),
        ("agent(x,depth=1)", "unknown opponent"),
        ("agent(x,temperature=-1)", "temperature must be a number of at least 0, not -1"),
        ("agent(x,temperature=hot)", "temperature must be a number of at least 0, not 'hot'"),
        ("agent(x,iteration=0)", "iteration must be an integer of at least 1, not 0"),
        ("agent(x,iteration=last)", "iteration must be an integer of at least 1, not 'last'"),
    ],
)
def test_bad_names_are_refused(name, complaint):
    with pytest.raises(NLRLError, match=complaint):
        frozen(name)


def test_nobody_to_oppose_in_a_game_for_one_player():
    maker = agent_maker(lambda source: FrozenModel(RuleModel(), "plain", 96), RolloutConfig(), 0)
    with pytest.raises(NLRLError, match="is for one player"):
        make_opponent("agent(x)", make("frozen_lake"), maker)


@pytest.mark.parametrize("field", ["rollout", "evaluation"])
@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "agent(runs/nothing)",
            "there is no agent 'runs/nothing': it must be a run's folder, a model folder, or one of ",
        ),
        ("epsilon(0.5,agent(runs/nothing))", "there is no agent 'runs/nothing'"),
        ("agent(transformer-base,iteration=1)", "transformer-base is not a run's folder (no config.toml in it)"),
        ("agent(FINISHED,iteration=7)", "has not trained an actor in iteration 7; there is 1 to 2"),
        ("agent(UNFINISHED)", "or name what there is: agent(UNFINISHED,iteration=2)"),
    ],
)
def test_an_agent_that_is_not_there_is_refused_before_anything_starts(
    finished, unfinished, config_file, tmp_path, capsys, field, name, complaint
):
    places = {"UNFINISHED": str(unfinished), "FINISHED": str(finished)}
    for word, place in places.items():
        name, complaint = (text.replace(word, place) if place not in text else text for text in (name, complaint))
    assert run_cli(["run", str(config_file(**{field: {"opponents": ["random", name]}}))]) == 2
    error = capsys.readouterr().err
    assert f"nlrl: {field}.opponents: " in error
    assert complaint in error
    assert not (tmp_path / "run").exists()


# -- agents of runs ----------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def unfinished(finished, tmp_path_factory):
    """The finished run without its agent, as one that was stopped after two iterations."""
    folder = shutil.copytree(finished, tmp_path_factory.mktemp("frozen") / "stopped")
    shutil.rmtree(folder / "agent")
    return folder


def moves_of(source):
    config, model = RolloutConfig(), open_frozen(source)
    agent = make_opponent("agent(x)", GAME, agent_maker(lambda _: model, config, 0))
    agent.prepare(OPEN)
    return [agent.policy(state) for state in OPEN]


def test_the_agent_of_a_run_is_its_last_committed_actor(finished, unfinished):
    last = moves_of(Source(str(finished)))
    assert last == moves_of(Source(str(finished), 2)) == moves_of(Source(str(unfinished), 2))
    assert last != moves_of(Source(str(unfinished), 1))
    assert describe(Source(str(unfinished), 1)).weights == unfinished / "iterations/001/actor/weights.safetensors"


def stages(one, iteration=1):
    for stage in (run_rollout, run_targets, run_policy_table, run_critic, run_improvement, run_actor):
        stage(one, iteration)
    return run_evaluation(one, iteration)


def games(one, stage, iteration=1):
    return [r for r in one.folder.stage(iteration, stage).records() if r["kind"] == "game"]


def test_a_run_trains_and_is_measured_against_frozen_agents_that_stay_as_they_are(session, finished):
    old, older = f"agent({finished})", f"agent({finished},iteration=1)"
    one = session(rollout={"opponents": [old, older]}, evaluation={"opponents": ["random", old, older]})
    run_evaluation(one, 0)
    before = {name: [one.opponent(name).policy(state) for state in OPEN[:200]] for name in (old, older)}
    assert before == {old: moves_of(Source(str(finished)))[:200], older: moves_of(Source(str(finished), 1))[:200]}
    assert before[old] != before[older]
    metrics = stages(one)
    assert {record["opponent"] for record in games(one, "rollout")} == {old, older}
    for record in games(one, "rollout") + games(one, "evaluation"):
        state = START
        for action in record["actions"]:
            if GAME.current_player(state) != record["seat"] and record["opponent"] != "random":
                assert one.opponent(record["opponent"]).policy(state) == {action: 1.0}
            state = GAME.apply(state, action).state
    assert {name: [one.opponent(name).policy(state) for state in OPEN[:200]] for name in before} == before
    assert set(metrics["exact"]["against"]) == set(metrics["sampled"]["greedy"]) == {"random", old, older}
    assert metrics["texts"]["against_policy"]["text"]["mae"] >= 0


def test_what_is_known_by_samples_only_has_no_exact_figures(session, finished):
    soft, search = f"agent({finished},temperature=1)", "mcts(10,1)"
    one = session(
        rollout={"opponents": ["random", search, soft]}, evaluation={"opponents": ["random", search, soft], "games": 4}
    )
    run_evaluation(one, 0)
    metrics = stages(one)
    assert {record["opponent"] for record in games(one, "rollout")} == {"random", search, soft}
    assert set(metrics["exact"]["against"]) == {"random"}
    assert set(metrics["sampled"]["greedy"]) == set(metrics["sampled"]["sampled"]) == {"random", search, soft}
    assert metrics["texts"]["against_policy"] == {}
    assert metrics["texts"]["against_optimal"]["text"]["mae"] >= 0
    diary = [r for r in one.folder.stage(1, "evaluation").records() if r["kind"] == "diary"]
    assert {e["exact_policy"] for entry in diary for e in entry["evaluations"]} == {None}
    assert report(one.folder.path)


def test_a_run_against_a_frozen_agent_is_repeatable(small_config, tmp_path, finished, committed_files):
    opponents = [f"agent({finished},temperature=1)", "epsilon(0.5,mcts(10,1))"]
    changes = {"rollout": {"opponents": opponents, "workers": 2}, "iterations": 1}
    first = committed_files(run(small_config(tmp_path / "first", **changes)).path)
    changes["rollout"]["workers"] = 3
    assert committed_files(run(small_config(tmp_path / "second", **changes)).path) == first


# -- on the command line -----------------------------------------------------------------------------------------------
def test_eval_plays_frozen_agents(finished, tmp_path, capsys):
    out, itself, search = tmp_path / "figures.json", f"agent({finished})", "mcts(10,1)"
    names = ["random", itself, search]
    assert run_cli(["eval", str(finished), "--opponents", *names, "--games", "10", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["sampled"]) == set(names)
    assert set(figures["exact"]["against"]) == {"random", itself}
    results = figures["exact"]["against"][itself]
    assert results["win"] == results["loss"]  # the same greedy moves in both seats
    greedy = figures["sampled"][itself]
    assert greedy["win"]["share"] == results["win"]
    assert "known by samples only: mcts(10,1)" in capsys.readouterr().out


def test_eval_refuses_an_agent_that_is_not_there_before_it_plays(finished, capsys):
    assert run_cli(["eval", str(finished), "--opponents", "agent(runs/nothing)"]) == 2
    assert "there is no agent 'runs/nothing'" in capsys.readouterr().err


# -- models of our own -------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def native_run(tmp_path_factory):
    """A run of the bundled base that has committed one actor: the base with other numbers in one tensor."""
    pytest.importorskip("torch")
    from nlrl.backbones.loading import load
    from nlrl.orchestration.run_folder import RunFolder
    from nlrl.orchestration.trainer import WEIGHTS_FILE, TrainerActor
    from nlrl.testing import write_run

    config = 'name = "native"\n[model]\nname = "transformer-base"\n'
    folder = write_run(tmp_path_factory.mktemp("native") / "run", config=config)
    trainer, stage = TrainerActor("transformer-base", "cpu", 1), RunFolder(folder).stage(1, "actor")
    tensor = next(iter(trainer._networks["actor"].state_dict().values()))
    tensor.mul_(-1)
    with stage.file(WEIGHTS_FILE) as path:
        trainer.save("actor", str(path))
    stage.commit({}, [WEIGHTS_FILE])
    return folder, load("transformer-base")[0], tensor


def test_a_native_agent_is_the_bundled_model_or_a_runs_committed_weights(native_run):
    import torch

    folder, base, tensor = native_run
    bundled, trained = open_frozen(Source("transformer-base")).model, open_frozen(Source(str(folder), 1)).model
    assert trained.weight_version == "actor@1" != bundled.weight_version
    assert torch.equal(next(iter(bundled.model.state_dict().values())), next(iter(base.state_dict().values())))
    assert torch.equal(next(iter(trained.model.state_dict().values())), tensor)
    name = "agent(transformer-base)"
    opened = FrozenModel(bundled, "plain", 64)
    agent = make_opponent(name, GAME, agent_maker(lambda _: opened, RolloutConfig(), 0))
    (move,) = agent.choose([START], rngs(1))
    assert move in GAME.legal_actions(START)


def test_torn_weights_are_named(native_run, tmp_path):
    folder = shutil.copytree(native_run[0], tmp_path / "run")
    path = folder / "iterations/001/actor/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(NLRLError, match=r"weights\.safetensors cannot be read"):
        open_frozen(Source(str(folder), 1))

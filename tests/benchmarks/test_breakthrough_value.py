"""The value benchmark scores signs against exact labels, and what cannot be read is wrong."""

from __future__ import annotations

import json

import pytest

from nlrl.benchmarks import breakthrough_value as bench
from nlrl.envs import make
from nlrl.envs.oracle import oracle_for
from nlrl.errors import NLRLError
from nlrl.orchestration.state_sets import StateSetConfig, state_set
from nlrl.testing import ScriptedModel

GAME = make("breakthrough")
TINY = ["--players", "random", "mcts(10,1)", "--games-per-pair", "5", "--held-out", "80"]
CONFIG = StateSetConfig(players=("random", "mcts(10,1)"), games_per_pair=5, held_out=80)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sets")


@pytest.fixture(scope="module")
def found(folder):
    return state_set(GAME.spec, CONFIG, folder)


def test_only_the_right_sign_is_right():
    row = bench.scores([0.9, -0.1, 0.3, -1.0, 0.0, None], [1, -1, -1, 1, 1, -1])
    assert (row["right"], row["states"], row["unreadable"], row["undecided"]) == (2, 6, 1, 1)
    assert row["low"] < row["accuracy"] < row["high"]
    nothing = bench.scores([], [])
    assert nothing["accuracy"] is None


def test_a_run_of_the_baselines_writes_what_it_prints(folder, tmp_path, capsys):
    out, train = tmp_path / "figures.json", tmp_path / "train.jsonl"
    bench.main(
        [
            *TINY,
            "--states",
            "50",
            "--folder",
            str(folder),
            "--out",
            str(out),
            "--train",
            "40",
            "--write-train",
            str(train),
        ]
    )
    figures, printed = json.loads(out.read_text()), capsys.readouterr().out
    rows = figures["methods"]
    assert set(rows) == {"majority class", "player to move", "nearer to the far row", "more pawns", "three rules"}
    assert all(row["states"] == 50 for row in rows.values())
    for name, row in rows.items():
        assert name in printed
        assert f"{row['accuracy']:.4f}" in printed
    wins = figures["player to move wins"]
    assert rows["player to move"]["right"] == wins
    assert rows["majority class"]["right"] == max(wins, 50 - wins)
    assert rows["three rules"]["where three rules fail"]["right"] == 0
    assert figures["set"]["training positions"] == 40
    assert (figures["set"]["split_seed"], figures["set"]["games"]) == (42, 20)
    written = [GAME.parse_text(json.loads(line)) for line in train.read_text().splitlines()]
    assert len(written) == 40
    assert not set(written) & set(state_set(GAME.spec, CONFIG, folder).held_out)


def answers(found, say):
    """A model that answers each held-out position by `say(value)`, seen through its prompt."""
    from nlrl.agents.roles import Roles, StateInput

    role, oracle = Roles(found.game, "plain").v, oracle_for(found.game)
    known = {role.messages(StateInput(s))[-1].content: oracle.value(s) for s in found.held_out}
    return ScriptedModel(lambda request: say(known[request.messages[-1].content]))


@pytest.mark.parametrize(
    ("say", "right"),
    [
        (lambda value: f"I put it there.\nfinal_evaluation: {value:+.2f}", 30),
        (lambda value: f"final_evaluation: {-value:+.2f}", 0),
        (lambda value: "White is better.", 0),
        (lambda value: "final_evaluation: +0.00", 0),
    ],
)
def test_an_agents_verdicts_are_compared_with_the_solver(found, say, right):
    agent = bench.Agent("scripted", answers(found, say), "plain", 64)
    states = found.held_out[:30]
    figures = bench.measure(found, 30, [("scripted", lambda: bench.language_verdicts(agent, found.game, states))])
    assert figures["methods"]["scripted"]["right"] == right


def test_tags_are_read_for_the_player_to_move(found):
    """An agent that always says <black> is right where black wins."""
    agent = bench.Agent("tagger", ScriptedModel(lambda request: "4. *Advantage*: <black>"), "instruct", 64)
    states, oracle = found.held_out[:40], oracle_for(found.game)
    verdicts = bench.language_verdicts(agent, found.game, states)
    assert verdicts == [1.0 if state.player == 0 else -1.0 for state in states]
    black = sum((oracle.value(state) > 0) == (state.player == 0) for state in states)
    assert bench.scores(verdicts, [oracle.value(state) for state in states])["right"] == black


def test_q_counts_as_the_best_that_is_said_of_any_move(found):
    def say(request):
        move = request.messages[-1].content.rsplit(" ", 1)[1]
        return "no idea" if "*" in move else f"final_evaluation: {-0.5 if move[0] < 'c' else 0.25:+.2f}"

    agent = bench.Agent("mover", ScriptedModel(say), "plain", 64)
    states = found.held_out[:20]
    for state, verdict in zip(states, bench.language_verdicts(agent, GAME, states, role="q"), strict=True):
        quiet = [text for text in GAME.legal_moves(state).values() if "*" not in text]
        expected = {-0.5 if text[0] < "c" else 0.25 for text in quiet}
        assert verdict == (max(expected) if expected else None)


@pytest.mark.slow  # reads a model
def test_of_a_run_the_newest_critic_answers(tmp_path):
    from safetensors.torch import save_file

    from nlrl.backbones.loading import load_trainable
    from nlrl.orchestration.config import ModelConfig, RunConfig, to_toml
    from nlrl.orchestration.run_folder import RunFolder

    (tmp_path / "config.toml").write_text(to_toml(RunConfig(model=ModelConfig(name="transformer-base"))))
    model, _ = load_trainable("transformer-base")
    for iteration, scale in ((1, 0.5), (2, 0.0)):  # a critic of zeros says the same of everything
        stage = RunFolder(tmp_path).stage(iteration, "critic")
        with stage.file("weights.safetensors") as path:
            save_file({name: scale * tensor for name, tensor in model.state_dict().items()}, path)
        stage.commit({}, ["weights.safetensors"])
    agent = bench.open_agent(str(tmp_path), max_tokens=8)
    assert agent.style == "plain"
    assert bench.language_verdicts(agent, GAME, [GAME.initial_states()[0]]) == [None]
    assert bench.open_agent("transformer-base").model.weight_version != agent.model.weight_version


def test_the_opening_of_agents_is_refused_by_name():
    with pytest.raises(NLRLError, match="no-such-model"):
        bench.open_agent("no-such-model")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--states", "81"], "from 1 to --held-out"), (["--game", "tictactoe"], "baselines are Breakthrough's")],
)
def test_what_cannot_be_measured_is_refused(folder, arguments, message):
    with pytest.raises(NLRLError, match=message):
        bench.main([*TINY, "--folder", str(folder), *arguments])


def test_a_policy_that_plays_perfectly_names_every_winner(tmp_path, capsys):
    bench.main([*f"--states 20 --held-out 20 --games-per-pair 2 --folder {tmp_path}".split(), "--play", "minimax"])
    shown = capsys.readouterr().out
    assert "a game of minimax" in shown
    assert any("minimax" in line and "1.0000" in line for line in shown.splitlines())

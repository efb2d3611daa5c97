"""The figures of every evaluation hold for texts about any game, and fall for texts that are wrong."""

from __future__ import annotations

import random
from functools import cache

import pytest

from nlrl.agents.asking import Reply
from nlrl.agents.corpus.writers import Writer
from nlrl.agents.language import language_of
from nlrl.backbones.language_model import Completion
from nlrl.envs import make_from_spec
from nlrl.orchestration.check_texts import check_texts
from nlrl.orchestration.exact import optimal_values
from nlrl.orchestration.loop import run
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.texts import (
    Asked,
    argument_metrics,
    faithfulness,
    one_step_verdict,
    reliability,
    verdict_scores,
)

SPECS = (
    "tictactoe",
    "breakthrough(rows=4,columns=3)",
    "frozen_lake",
    "frozen_lake(slippery=False)",
    "maze(layout=umaze)",
)


@cache
def written(spec: str):
    """The game, bundled evaluations of random positions that say their exact values, and these."""
    game = make_from_spec(spec)
    writer, rng = Writer(game, seed=1), random.Random(2)
    states = list(dict.fromkeys(writer.states.draw(rng) for _ in range(40)))
    exact = optimal_values(game, states)
    asked = []
    for state, action in exact:
        said = writer.evaluation_with(state, action, round(exact[state, action], 2))[0]
        asked.append(Asked(state, action, said.text, said.verdict))
    return game, asked, exact


@pytest.mark.parametrize("spec", SPECS)
def test_true_texts_are_found_true(spec):
    game, asked, exact = written(spec)
    scores = verdict_scores(game, asked, exact)
    assert scores.keys() == {"text", "constant", "one_step"}
    assert scores["text"]["mae"] < 0.01 < scores["constant"]["mae"]
    assert scores["text"]["order_accuracy"] > 0.99
    found = faithfulness(game, asked, language_of(game).phrases["bands"])
    assert found["claims"] > len(asked) / 2
    assert (found["true_claims"], found["words_agree"], found["numbers_agree"]) == (1, 1, 1)
    assert (found["illegal"], found["leaks"], found["words_silent"]) == (0, 0, 0)


@pytest.mark.parametrize("spec", SPECS)
def test_texts_with_another_number_at_the_end_are_found_out(spec):
    game, asked, exact = written(spec)
    spoiled = [one._replace(verdict=-one.verdict if abs(one.verdict) > 0.2 else 1.0) for one in asked]
    found = faithfulness(game, spoiled, language_of(game).phrases["bands"])
    assert found["words_agree"] < 0.05
    assert found["numbers_agree"] < 0.05
    assert verdict_scores(game, spoiled, exact)["text"]["mae"] > 0.5


@pytest.mark.parametrize("spec", SPECS)
def test_texts_about_another_position_are_found_false(spec):
    game, asked, _ = written(spec)
    texts = [one.text for one in asked]
    moved = [one._replace(text=text) for one, text in zip(asked, texts[7:] + texts[:7], strict=True)]
    assert faithfulness(game, moved)["true_claims"] < 0.9


def test_what_could_not_be_read_is_in_the_verdicts_and_not_among_the_texts():
    game, asked, exact = written("tictactoe")
    half = [one if i % 2 else one._replace(text=None, verdict=None) for i, one in enumerate(asked)]
    assert verdict_scores(game, half, exact)["text"]["coverage"] == pytest.approx(0.5, abs=0.01)
    assert faithfulness(game, half)["numbers_agree"] == 1
    assert sum(bar["count"] for bar in reliability(half, exact)) == len(asked) // 2


def test_nothing_is_said_where_nothing_is_known():
    game, asked, _ = written("tictactoe")
    assert verdict_scores(game, asked, {}) == {}
    assert reliability(asked, {}) == []


def test_the_trivial_verdict_of_a_walk_sees_one_step():
    lake = make_from_spec("frozen_lake(slippery=False)")
    beside_goal = lake.parse_text("S _ _ _\n_ O _ O\n_ _ _ O\nO _ P G")
    assert one_step_verdict(lake, beside_goal, 2, otherwise=-0.5) == 1
    assert one_step_verdict(lake, beside_goal, 0, otherwise=-0.5) == -0.5


def test_arguments_of_the_actor_are_held_to_the_rules():
    game = make_from_spec("tictactoe")
    start = game.initial_states()[0]
    corner = game.apply(start, 0).state

    def reply(text):
        return Reply(None, Completion(text))

    good = argument_metrics(game, {start: reply("I play 5.\nbest_move: 5"), corner: reply("I play 5.\nbest_move: 5")})
    assert (good["actor_illegal"], good["actor_true_claims"]) == (0, 1)
    bad = argument_metrics(game, {start: reply("I play 5."), corner: reply("O wins at 3. I play 1.\nbest_move: 1")})
    assert bad["actor_illegal"] == 0.5
    assert bad["actor_true_claims"] == pytest.approx(1 / 4)


# -- runs of other methods ---------------------------------------------------------------------------------------------
GAME_RULES = {"kind": "scripted", "name": "nlrl.testing.by_game_rules"}
MAZE, BOARD = "maze(layout=umaze,observed=full)", "breakthrough(columns=3,rows=3)"


def run_on(small_config, folder, spec, **changes):
    game = make_from_spec(spec)
    place = {"game": {"name": game.name, "params": game.params}, "model": GAME_RULES | {"options": {"game": spec}}}
    opponents = ["none"] if game.num_players == 1 else ["random"]
    return run(
        small_config(folder, iterations=1, evaluation={"opponents": opponents, "probes": []}, **place | changes)
    ).path


def test_sweeps_are_checked_against_best_play_choice_by_choice(small_config, tmp_path):
    folder = run_on(small_config, tmp_path / "run", MAZE, method="gpi", gpi={"plans": 2, "repeats": 2})
    found = check_texts(folder, states=3, prompts=8).figures
    assert found["verdicts"].keys() == {"against_optimal", "reliability", "choices"}
    assert found["verdicts"]["choices"]["optimal"]["regret"]["n"] == 6 * 4  # six states, each chosen in four times
    assert found["counterfactual"]["follows"]["value"] == 1
    assert found["faithfulness"]["critic"]["true_claims"]["value"] == 1


def test_a_critic_of_positions_is_checked_on_the_held_out_ones(small_config, tmp_path):
    states = {"players": ["random", "first-move"], "games_per_pair": 6, "held_out": 12}
    td = {"policy": "random", "lookahead": 2, "variations": 2, "collected": 4, "states": states}
    folder = run_on(small_config, tmp_path / "run", BOARD, method="value_td", value_td=td)
    found = check_texts(folder, states=3).figures
    stored = RunFolder(folder).stage(1, "evaluation").load()["metrics"]["values"]["text"]
    said = found["verdicts"]["against_optimal"]["text"]
    assert said["side_accuracy"]["value"] == pytest.approx(stored["side_accuracy"], abs=1e-5)
    assert said["side_accuracy"]["n"] == 12
    assert found["faithfulness"].keys() == {"critic", "targets"}
    assert not found["counterfactual"]
    assert found["symmetry"]["verdicts"]["mirrored left-right"]["coverage"] == 1

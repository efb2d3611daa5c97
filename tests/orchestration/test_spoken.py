"""Illegal suggestions and leaked references are counted wherever a policy or a critic speaks, by every method, in every
game."""

from __future__ import annotations

from dataclasses import replace

import pytest

from nlrl.envs import make_from_spec
from nlrl.orchestration.loop import run
from nlrl.orchestration.stages.evaluation import run_evaluation
from nlrl.orchestration.stages.strength import run_chosen_strength, run_strength, silent
from nlrl.orchestration.texts import said_in_games, spoken_metrics
from nlrl.orchestration.tracking import METRICS_FILE, read_metrics


class Spoiled:
    """A model with a sentence put before every answer to prompts with a given heading."""

    reads_expectations = False

    def __init__(self, inner, heading, sentence):
        self._inner, self._heading, self._sentence = inner, heading, sentence
        self.name = inner.name

    @property
    def weight_version(self):
        return self._inner.weight_version

    def load_weights(self, state, version):
        self._inner.load_weights(state, version)

    def generate(self, requests):
        return [self._spoil(*pair) for pair in zip(requests, self._inner.generate(requests), strict=True)]

    def _spoil(self, request, completion):
        if not request.messages[-1].content.startswith(self._heading):
            return completion
        return replace(completion, text=f"{self._sentence} {completion.text}")


@pytest.mark.parametrize(
    ("spec", "legal", "illegal"),
    [
        ("tictactoe", "5", "12"),
        ("breakthrough(rows=5,columns=5)", "a2a3", "a2a5"),
        ("frozen_lake", "move left", "move upwards"),
        ("maze(layout=umaze,observed=full)", "move left", "move upwards"),
    ],
)
def test_an_illegal_suggestion_and_a_leak_are_counted_in_every_game(spec, legal, illegal):
    game = make_from_spec(spec)
    state = game.initial_states()[0]
    legal = (
        legal if game.parse_action(state, legal) is not None else game.action_text(state, game.legal_actions(state)[0])
    )
    good, bad = f"It looks fine.\nbest_move: {legal}", f"It looks fine.\nbest_move: {illegal}"
    leaky = f"In 8 games it won 5 out of the 8 games.\nbest_move: {legal}"
    found = spoken_metrics(game, [(state, good), (state, bad), (state, leaky), (state, leaky)])
    assert (found["illegal"], found["leaks"]) == (0.25, 0.5)
    assert spoken_metrics(game, [(state, "")]) == {}


def test_the_evaluation_of_methods_without_a_critic_counts_them(session, watched):
    watched.wrap = lambda model: Spoiled(model, "Choose a move.", "I suggest 5.")
    one = session(model=watched.config, method="rejection_sampling")
    metrics = run_strength(one, 0)
    turns, games = metrics["turns"], metrics["said_in_games"]
    assert 0.3 < turns["actor_illegal"] < 0.9  # where the centre is taken
    assert 0.3 < games["illegal"] < 0.9
    assert turns["actor_leaks"] == games["leaks"] == 0
    records = list(one.folder.stage(0, "evaluation").records())
    assert len(said_in_games(one, records)) == len(set(said_in_games(one, records))) > 10


def test_the_evaluation_counts_what_the_critic_suggests_and_cites(session, watched):
    watched.wrap = lambda model: Spoiled(model, "Value the move.", "The best move is 12. In 8 games O won 5.")
    metrics = run_evaluation(session(model=watched.config), 0)
    assert (metrics["texts"]["illegal"], metrics["texts"]["leaks"]) == (1, 1)
    assert (metrics["turns"]["actor_illegal"], metrics["turns"]["actor_leaks"]) == (0, 0)


def test_plans_by_prompting_are_counted_too(small_config, tmp_path):
    maze = {"game": {"name": "maze", "params": {"layout": "umaze", "observed": "full"}}}
    model = {"name": "nlrl.testing.by_game_rules", "options": {"game": "maze(layout=umaze,observed=full)"}}
    gpi = {"plans": 1, "repeats": 1, "lookahead": 1, "variations": 1}
    evaluation = {"opponents": ["none"], "probes": []}
    config = small_config(
        tmp_path / "run", **maze, model=model, method="gpi", iterations=1, gpi=gpi, evaluation=evaluation
    )
    metrics = run(config).stage(1, "evaluation").load()["metrics"]
    assert metrics["turns"]["actor_claims"] > 0
    assert (metrics["turns"]["actor_illegal"], metrics["turns"]["actor_leaks"]) == (0, 0)
    assert {"illegal", "leaks"} <= metrics["texts"].keys()


def test_an_agent_that_says_nothing_suggests_nothing(session):
    one = session()
    metrics = run_chosen_strength(one, 0, lambda turns: [silent(one.game.legal_actions(t.state)[0]) for t in turns])
    assert not [name for name in metrics["turns"] if name.startswith("actor")]
    assert "said_in_games" not in metrics


def test_they_are_tracked(finished):
    tracked = read_metrics(finished / METRICS_FILE)[-1]["metrics"]
    names = ("turns/actor_illegal", "turns/actor_leaks", "texts/illegal", "texts/leaks", "said_in_games/illegal")
    assert {f"evaluation/{name}" for name in (*names, "said_in_games/leaks")} <= tracked.keys()

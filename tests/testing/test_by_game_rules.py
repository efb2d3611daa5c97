"""The model that follows the rules of any small game: right in every role of that game's corpus."""

from __future__ import annotations

from functools import cache
from itertools import islice

import pytest

from nlrl.agents.corpus import CorpusSettings, examples
from nlrl.agents.corpus.study import ROLE_OF
from nlrl.agents.parser import ParseFailure
from nlrl.agents.roles import ActionInput, Roles, StateInput
from nlrl.backbones.language_model import LanguageModel, Message, Request
from nlrl.envs import make_from_spec
from nlrl.testing.by_game_rules import GameRuleModel, make_model

SPECS = (
    "frozen_lake(layout=random,maps=5,slippery=True)",
    "frozen_lake(layout=4x4,slippery=False)",
    "maze(layout=umaze,observed=full)",
    "breakthrough(columns=3,rows=4)",
    "tictactoe",
)


@cache
def model(spec):
    return GameRuleModel(spec)


def take(spec, count, role):
    return list(islice(examples(CorpusSettings(spec, roles=(role,)), 3), count))


def answer(spec, prompt, seed=0):
    return model(spec).generate([Request((Message("user", prompt),), seed=seed)])[0]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("role", ["g1_games", "g1_outlooks", "improvement"])
def test_it_aggregates_and_chooses_as_the_corpus_does(spec, role):
    roles = Roles(make_from_spec(spec))
    for example in take(spec, 40, role):
        said = answer(spec, example.messages[-1].content)
        output = getattr(roles, ROLE_OF.get(role, role)).parse(example.inp, said)
        assert not isinstance(output, ParseFailure), (example.messages[-1].content, said.text)
        found = output.action if role == "improvement" else output.verdict
        assert found == pytest.approx(example.answer, abs=0.0101)


@pytest.mark.parametrize("spec", SPECS[:4])
def test_it_joins_steps_and_what_follows_as_the_corpus_does(spec):
    roles = Roles(make_from_spec(spec))
    for example in take(spec, 25, "g2"):
        said = answer(spec, example.messages[-1].content)
        output = roles.g2.parse(example.inp, said)
        assert not isinstance(output, ParseFailure), (example.messages[-1].content, said.text)
        assert output.verdict == pytest.approx(example.answer, abs=0.0101), example.messages[-1].content


@pytest.mark.parametrize("spec", SPECS)
def test_its_own_moves_are_legal_and_its_own_values_readable(spec):
    game = make_from_spec(spec)
    roles, state = Roles(game), game.initial_states()[0]
    moves = set()
    for seed in range(40):
        said = answer(spec, roles.policy.messages(StateInput(state))[-1].content, seed)
        moves.add(roles.policy.parse(StateInput(state), said).action)
    assert len(moves) > 1
    for role, inp in ((roles.v, StateInput(state)), (roles.q, ActionInput(state, game.legal_actions(state)[0]))):
        said = answer(spec, role.messages(inp)[-1].content)
        assert not isinstance(role.parse(inp, said), ParseFailure)


def test_it_is_a_language_model_that_knows_no_other_prompts():
    assert isinstance(make_model(game=SPECS[0]), LanguageModel)
    assert answer(SPECS[0], "What is the capital of France?").text == "I do not know this prompt."

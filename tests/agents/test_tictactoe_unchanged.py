"""What the bundled bases of Tic-Tac-Toe were trained on stays as it was, byte for byte, however languages grow.

The digests were taken from the code that those bases were trained with. Who changes Tic-Tac-Toe's words on purpose
trains new bases, and only then writes new digests here.
"""

from __future__ import annotations

import hashlib
from itertools import islice

import pytest

from nlrl.agents.corpus import CorpusSettings, examples
from nlrl.agents.corpus.tokens import atom_texts, atoms
from nlrl.agents.language import language_of
from nlrl.agents.roles import (
    ActionInput,
    CandidatesInput,
    Evaluation,
    Roles,
    SamplesInput,
    StateInput,
    TransitionInput,
)
from nlrl.envs import make

GAME = make("tictactoe")


def digest(texts):
    """32 hexadecimal digits of SHA-256, each text closed by a zero byte."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\x00")
    return found.hexdigest()[:32]


def stream(seed, count, **settings):
    for example in islice(examples(CorpusSettings(**settings), seed), count):
        yield example.role
        for message in example.messages:
            yield from (message.role, message.content)
        yield from (example.completion, repr(example.answer))


@pytest.mark.parametrize(
    ("seed", "count", "settings", "expected"),
    [
        (0, 2000, {}, "6ba360029fe676bcd913586541dd397b"),
        (1, 2000, {}, "ae9921b3db8f6f20fb4f44b4ec3ee4fb"),
        (2, 500, {"facts": False, "held_out": True}, "9fe7fc0e26929360d5b706983afa055a"),
        (3, 500, {"roles": ("g2", "g1_outlooks", "descriptor", "reader")}, "64a0997bfdfc892626be5a38d0b11805"),
    ],
)
def test_the_corpus_is_the_one_the_bases_learned_from(seed, count, settings, expected):
    assert digest(stream(seed, count, **settings)) == expected


@pytest.mark.parametrize(
    ("style", "expected"),
    [("plain", "67df59382571259a71f5067f8d897abb"), ("instruct", "cc1b02df96c891bd0fe130bd12aefada")],
)
def test_the_prompts_are_those_the_bases_know(style, expected):
    roles, start = Roles(GAME, style), GAME.initial_states()[0]
    prompts = []
    for state in (start, GAME.apply(GAME.apply(start, 4).state, 0).state):
        prompts += [
            roles.policy.messages(StateInput(state)),
            roles.v.messages(StateInput(state)),
            roles.q.messages(ActionInput(state, 2)),
            roles.g1.messages(SamplesInput(state, 2, ("a", "b"))),
            roles.g1.messages(SamplesInput(state, None, ("a", "b"))),
            roles.g1.messages(SamplesInput(state, 2, ("a", "b"), "outlooks")),
            roles.g1.messages(SamplesInput(state, None, ("a",), "outlooks")),
            roles.g2.messages(TransitionInput(state, "steps", "then")),
            roles.improvement.messages(
                CandidatesInput(state, ((1, Evaluation("Quiet.", 0.1)), (8, Evaluation("Bold.", -0.3))))
            ),
        ]
    messages = [message for prompt in prompts for message in prompt]
    assert digest(text for message in messages for text in (message.role, message.content)) == expected


def test_a_tokenizer_of_its_texts_would_keep_the_same_atoms():
    languages = [language_of(GAME)]
    assert digest([*atoms(languages), *atom_texts(languages)]) == "f42b0254188443f042d176d0f03eb878"

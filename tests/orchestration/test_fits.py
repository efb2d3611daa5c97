"""The training actor trains every kind of example on the bundled base, and a value head survives a restart."""

from __future__ import annotations

import copy

import pytest

from nlrl.backbones.language_model import Message, Request, Sampling
from nlrl.backbones.prompts import PromptEncoder
from nlrl.backbones.scoring import score
from nlrl.orchestration.fits import (
    AnswerExample,
    FitSettings,
    PairExample,
    PolicyFit,
    PreferenceFit,
    ReturnExample,
    TextExample,
    ValueFit,
)
from nlrl.orchestration.trainer import TrainerActor

BASE = "transformer-base"
PROMPT = (Message("user", "Choose a move.\n O | 2 | 3\n---+---+---\n 4 | X | 6\n---+---+---\n 7 | 8 | 9\nO to move"),)
OTHER = (Message("user", "Choose a move.\n 1 | 2 | 3\n---+---+---\n 4 | X | 6\n---+---+---\n 7 | 8 | O\nO to move"),)
PLAIN = {"learning_rate": 1e-3, "batch_size": 4, "epochs": 3, "seed": 0}


@pytest.fixture
def trainer():
    return TrainerActor(BASE, "cpu", 1)


@pytest.fixture(scope="module")
def base():
    """The base's network and tokenizer."""
    from nlrl.backbones.loading import load_network

    return load_network(BASE)


@pytest.fixture(scope="module")
def answers(base):
    """The base's answers to `PROMPT`, as they are sampled."""
    from nlrl.backbones.engine import Engine

    requests = [Request(PROMPT, sampling=Sampling(max_tokens=40), seed=seed) for seed in range(8)]
    return Engine(*base, name="base").generate(requests)


def length(base, *prompts):
    """Tokens of prompts."""
    return sum(map(len, PromptEncoder(base[1]).encode([Request(messages) for messages in prompts])))


def logprob(base, trainer, tokens):
    """Log-probability of an answer to `PROMPT` under the trainer's actor."""
    network = copy.deepcopy(base[0])
    network.load_state_dict(trainer.weights("actor"))
    [found] = score(network, PromptEncoder(base[1]).encode([Request(PROMPT)]), [tokens])
    return sum(token.logprob for token in found)


def test_sampled_answers_are_reinforced_by_their_advantage(base, answers, trainer):
    good, bad = answers[0], next(other for other in answers if other.text != answers[0].text)
    before = [logprob(base, trainer, one.tokens) for one in (good, bad)]
    examples = [
        AnswerExample(PROMPT, good.tokens, good.logprobs, 1.0),
        AnswerExample(PROMPT, bad.tokens, bad.logprobs, -1.0),
    ]
    metrics = trainer.fit("actor", examples, PolicyFit(**PLAIN, loss={"clip": 0.2}))
    after = [logprob(base, trainer, one.tokens) for one in (good, bad)]
    assert after[0] - after[1] > before[0] - before[1] + 0.1
    assert metrics["drift"] < 1e-4  # the engine and the trainer compute the same probabilities
    assert metrics["tokens"] == 3 * (length(base, PROMPT, PROMPT) + len(good.tokens) + len(bad.tokens))


def test_the_base_holds_the_policy_back(answers, trainer):
    one = answers[0]
    examples = [AnswerExample(PROMPT, one.tokens, one.logprobs, 1.0)]
    first = trainer.fit("actor", examples, PolicyFit(**PLAIN, loss={"kl": 0.1}))
    second = trainer.fit("actor", examples, PolicyFit(**PLAIN, loss={"kl": 0.1}))
    assert first["loss"] < second["loss"]  # now it has moved away from the base, and pays for it


def test_preferences_and_texts_are_learned(trainer):
    pair = PairExample(PROMPT, "I take 5.\nbest_move: 2", "I take 2.\nbest_move: 3")
    metrics = trainer.fit("actor", [pair], PreferenceFit(**PLAIN, beta=0.3))
    assert metrics["margin"] > 0
    critic = trainer.fit("critic", [TextExample(PROMPT, "I put O at +0.50.")], FitSettings(**PLAIN))
    assert critic["tokens"] > 0
    assert "margin" not in critic


def test_a_head_learns_returns_and_survives_a_restart(base, trainer, tmp_path):
    assert trainer.values("critic", [PROMPT])[0] == [0.0]
    examples = [ReturnExample(PROMPT, 1.0), ReturnExample(OTHER, -1.0)]
    trainer.fit("critic", examples, ValueFit(3e-4, 2, 30, 0))
    values, tokens = trainer.values("critic", [PROMPT, OTHER])
    assert values == pytest.approx([1.0, -1.0], abs=0.2)
    assert tokens == length(base, PROMPT, OTHER)
    trainer.save("critic", str(tmp_path / "weights"))
    trainer.save_head("critic", str(tmp_path / "head"))
    fresh = TrainerActor(BASE, "cpu", 1)
    fresh.load("critic", str(tmp_path / "weights"))
    fresh.load_head("critic", str(tmp_path / "head"))
    assert fresh.values("critic", [PROMPT, OTHER])[0] == pytest.approx(values, abs=1e-5)


def test_a_policy_trains_its_head_too(answers, trainer):
    one = answers[0]
    examples = [AnswerExample(PROMPT, one.tokens, one.logprobs, 0.0, return_=1.0)]
    settings = PolicyFit(**PLAIN | {"epochs": 20, "learning_rate": 3e-4}, loss={"value_clip": 9.0}, head=True)
    metrics = trainer.fit("actor", examples, settings)
    assert metrics["value_loss"] < 0.4
    assert trainer.values("actor", [PROMPT])[0][0] > 0.3

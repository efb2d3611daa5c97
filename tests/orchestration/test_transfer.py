"""After every transfer the engine is held to what the trainer has: whatever was lost on the way is noticed.

A tiny native model in this process, trained for a step.
"""

from __future__ import annotations

import math

import pytest
import torch

from nlrl.backbones.engine import Engine
from nlrl.backbones.language_model import Message
from nlrl.errors import NLRLError
from nlrl.orchestration.fits import FitSettings, TextExample
from nlrl.orchestration.run_folder import RunFolder
from nlrl.orchestration.session import open_session
from nlrl.orchestration.trainer import TrainerActor
from nlrl.orchestration.transfer import EXACT, PROBES, agreement, positions
from nlrl.testing.tiny_native import make_tiny, tiny_model

PROMPTS = [(Message("user", f"Choose a move.\n 1 | 2 | {i}"),) for i in range(9)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def session(tiny, tmp_path, small_config):
    """A session whose actor has been trained and not been sent."""
    opened = []

    def make(model=None, **changes):
        config = small_config(tmp_path / "run", model=tiny_model(tiny, **(model or {})), **changes)
        opened.append(open_session(config, RunFolder(tmp_path / "run")))
        examples = [TextExample(prompt, "I take 5.") for prompt in PROMPTS]
        opened[-1].trainer.call("fit", "actor", examples, FitSettings(3e-2, 4, 2, 0)).result()
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def test_agreement_is_the_mean_of_a_divergence_that_is_never_negative():
    assert agreement([[-1.0, -2.0], [-0.5]], [[-1.0, -2.0], [-0.5]]).kl == 0
    found = agreement([[math.log(0.5)], [math.log(0.8)]], [[math.log(0.25)], [math.log(0.9)]])
    by_hand = [0.25 / 0.5 - 1 - math.log(0.25 / 0.5), 0.9 / 0.8 - 1 - math.log(0.9 / 0.8)]
    assert found.kl == pytest.approx(sum(by_hand) / 2)
    assert found.max_difference == pytest.approx(math.log(2))
    assert found.tokens == 2
    assert agreement([[-1.0]], [[-math.inf]]).kl == math.inf
    assert agreement([[-1.0]], [[math.nan]]).kl == math.inf


def test_its_mean_over_samples_is_the_divergence():
    torch.manual_seed(0)
    engine, trainer = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    drawn = torch.multinomial(engine, 200_000, replacement=True)
    found = agreement([engine.log()[drawn].tolist()], [trainer.log()[drawn].tolist()])
    assert found.kl == pytest.approx(float((engine * (engine / trainer).log()).sum()), rel=0.02)


def test_weights_that_arrive_agree_to_the_rounding(session):
    one = session()
    one.install("actor", 1, PROMPTS)
    assert 0 <= one.transfers["transfer/actor/kl"] < EXACT / 100
    assert one.transfers["transfer/actor/max_difference"] < 1e-4
    assert one.transfers["transfer/actor/seconds"] > 0


def perturbed(weights):
    """One tensor of what is sent is a little off."""

    def changed(self, network):
        sent = weights(self, network)
        name = next(name for name in sent if "mlp" in name or "feed" in name or "down" in name)
        sent[name] = sent[name] * 1.05
        return sent

    return changed


def test_one_tensor_that_is_a_little_off_is_caught(session, monkeypatch):
    one = session()
    monkeypatch.setattr(TrainerActor, "weights", perturbed(TrainerActor.weights))
    with pytest.raises(NLRLError, match=r"actor@1 does not answer as it was trained: KL.* is \d.*max_transfer_kl.*by"):
        one.install("actor", 1, PROMPTS)


def test_an_engine_that_only_says_it_has_new_weights_is_caught(session, monkeypatch):
    one = session()
    one.install("actor", 1, PROMPTS)
    examples = [TextExample(prompt, "I take 7.") for prompt in PROMPTS]
    one.trainer.call("fit", "actor", examples, FitSettings(3e-2, 4, 2, 0)).result()

    def relabel(self, weights, version, name="default"):
        self._lanes[name].version = version

    monkeypatch.setattr(Engine, "load_weights", relabel)
    with pytest.raises(NLRLError, match=r"actor@2 does not answer.*calls its weights actor@2"):
        one.install("actor", 2, PROMPTS)


def test_prompts_that_are_read_as_other_tokens_are_caught(session, monkeypatch):
    one = session()
    encoded = TrainerActor._encoded
    monkeypatch.setattr(TrainerActor, "_encoded", lambda self, prompts: [row[:-1] for row in encoded(self, prompts)])
    with pytest.raises(NLRLError, match="read prompts as different tokens"):
        one.install("actor", 1, PROMPTS)


def test_every_server_is_asked(session, monkeypatch):
    one = session(cluster={"servers": 2})
    second = one.student.router._servers[1]._host._object
    put = type(second).put_weights
    stale = TrainerActor(one.config.model.name, "cpu").weights("actor")
    monkeypatch.setattr(
        type(second),
        "put_weights",
        lambda self, name, version, state: put(self, name, version, stale if self is second else state),
    )
    with pytest.raises(NLRLError, match="does not answer as it was trained"):
        one.install("actor", 1, PROMPTS)


def test_the_limit_is_a_field_and_0_looks_at_nothing(session, monkeypatch):
    monkeypatch.setattr(TrainerActor, "weights", perturbed(TrainerActor.weights))
    generous = session(model={"max_transfer_kl": 50.0})
    generous.install("actor", 1, PROMPTS)
    assert generous.transfers["transfer/actor/kl"] > EXACT
    blind = session(model={"max_transfer_kl": 0})
    blind.install("actor", 1, PROMPTS)
    assert blind.transfers == {}


def test_without_examples_positions_of_the_game_are_asked_always_the_same(session):
    one = session()
    for network, task in (("actor", "Choose a move."), ("critic", "Value the move.")):
        found = positions(one, network)
        assert len(set(found)) == PROBES
        assert found == positions(one, network)
        assert all(messages[-1].content.startswith(task) for messages in found)
    one.install("actor", 1)
    assert one.transfers["transfer/actor/kl"] < EXACT

"""DPO's loss is its formula, tiny.gradients included; the better answer gains, and only likelihood keeps it likely."""

import math

import pytest
import torch

from nlrl.backbones.preference import PreferenceBatch, PreferenceExample, PreferenceLoss, fit_preferences
from nlrl.errors import NLRLError


def pairs_of(tiny, count, seed=0):
    """Prompts with two answers each."""
    first, second = tiny.random_pairs(count, seed), tiny.random_pairs(count, seed + 1)
    return [
        PreferenceExample(prompt, chosen, rejected, 1.0 + i % 3, (-3.0 - i, -2.0))
        for i, ((prompt, chosen), (_, rejected)) in enumerate(zip(first, second, strict=True))
    ]


def test_loss_and_gradients_are_those_of_the_formula(tiny):
    model, beta, likelihood = tiny.make_model().double(), 0.3, 0.2
    examples, total = pairs_of(tiny, 5), torch.zeros(())
    for e in examples:
        chosen, rejected = (tiny.plain_logprobs(model, e.prompt, answer)[0] for answer in (e.chosen, e.rejected))
        margin = (chosen.sum() - e.reference[0]) - (rejected.sum() - e.reference[1])
        total = total + e.weight * (-torch.sigmoid(beta * margin).log() - likelihood * chosen.mean())
    total.backward()
    wanted = tiny.gradients(model)
    model.zero_grad()
    batch = PreferenceBatch.of(examples)
    batch = PreferenceBatch(batch.rows, batch.weights.double(), batch.reference.double())
    found, weight = PreferenceLoss(beta, likelihood)(model, batch)
    found.backward()
    assert found.item() == pytest.approx(total.item(), rel=1e-6)
    assert float(weight) == sum(e.weight for e in examples)
    assert torch.allclose(tiny.gradients(model), wanted, atol=1e-7)


def test_the_reference_is_the_model_as_it_was(tiny):
    """Before the first step no answer has gained on any: the loss is log 2 whatever the examples say."""
    metrics = fit_preferences(tiny.make_model(), pairs_of(tiny, 8), 0.5, 1, 8, 0, learning_rate=1e-9)
    assert metrics.loss == pytest.approx(math.log(2), abs=1e-4)
    assert metrics.margin == pytest.approx(0, abs=1e-3)


def sums(tiny, model, examples):
    with torch.no_grad():
        return [
            [float(tiny.plain_logprobs(model, e.prompt, answer)[0].sum()) for answer in (e.chosen, e.rejected)]
            for e in examples
        ]


@pytest.mark.parametrize("likelihood", [0.0, 1.0])
def test_the_chosen_answer_gains_on_the_rejected_one(tiny, likelihood):
    model, examples = tiny.make_model(), pairs_of(tiny, 16)
    before = sums(tiny, model, examples)
    metrics = fit_preferences(model, examples, 0.2, 12, 8, 0, likelihood, learning_rate=2e-3)
    after = sums(tiny, model, examples)
    gains = [a[0] - b[0] - (a[1] - b[1]) for a, b in zip(after, before, strict=True)]
    assert sum(gain > 0 for gain in gains) >= 15
    assert metrics.accuracy > 0.9
    assert metrics.margin > 1
    assert (metrics.steps, metrics.examples) == (24, 192)
    if likelihood:
        assert sum(a[0] for a in after) > sum(b[0] for b in before)


def test_an_empty_answer_is_refused(tiny):
    with pytest.raises(NLRLError, match="end token"):
        fit_preferences(tiny.make_model(), [PreferenceExample((5,), (), (2,))], 0.1, 1, 1, 0, learning_rate=1e-3)

"""The clipped losses are their formulas, tiny.gradients included; PPO and GRPO improve on toys, and PPO sees losses."""

import math
import random
from dataclasses import replace

import pytest
import torch

from nlrl.backbones.advantages import gae, group_advantages, normalised
from nlrl.backbones.policy_gradient import (
    PolicyBatch,
    PolicyExample,
    PolicyLoss,
    PolicySettings,
    clipped_policy_loss,
    clipped_value_loss,
    fit_policy,
    kl_to_reference,
)
from nlrl.backbones.value_head import ValueHead, WithValueHead, predict
from nlrl.errors import NLRLError


def examples_of(tiny, model, count=6, seed=0):
    """Sampled answers whose sampling policy was near the model: some ratios are clipped, some are not."""
    rng, found = random.Random(seed), []
    for prompt, completion in tiny.random_pairs(count, seed):
        with torch.no_grad():
            now = tiny.plain_logprobs(model, prompt, completion)[0].tolist()
        old, reference = ([value + rng.gauss(0, 0.3) for value in now] for _ in range(2))
        numbers = {"advantage": rng.gauss(0, 1), "return_": rng.uniform(-1, 1), "value": rng.gauss(0, 0.3)}
        found.append(
            PolicyExample(
                prompt, completion, tuple(old), weight=rng.choice([1.0, 3.0]), reference=tuple(reference), **numbers
            )
        )
    return found


def plain_loss(tiny, model, examples, s, length):
    """The loss as papers write it: one example, one token at a time."""
    total = weight = 0.0
    for e in examples:
        logprobs, every = tiny.plain_logprobs(model, e.prompt, e.completion)
        for t, logprob in enumerate(logprobs):
            ratio = (logprob - e.logprobs[t]).exp()
            clipped = ratio.clamp(1 - s.clip, 1 + s.clip)
            q = e.reference[t] - logprob
            entropy = -(every[t].exp() * every[t]).sum()
            loss = -torch.min(ratio * e.advantage, clipped * e.advantage)
            total = total + e.weight * (loss - s.entropy * entropy + s.kl * (q.exp() - q - 1)) / length
        if isinstance(model, WithValueHead):
            ids = torch.tensor([e.prompt])
            value = model.head(model.hidden(ids, torch.arange(ids.shape[1])[None])[0, -1])
            held = e.value + (value - e.value).clamp(-s.value_clip, s.value_clip)
            error = torch.max((value - e.return_) ** 2, (held - e.return_) ** 2)
            total = total + e.weight * s.value * 0.5 * error
        weight += e.weight
    return total, weight


def lively_head(tiny, seed=0):
    """A head that does not answer 0."""
    torch.manual_seed(seed)
    head = ValueHead(tiny.WIDTH)
    torch.nn.init.normal_(head.out.weight, std=0.2)
    return head


@pytest.mark.parametrize("head", [False, True])
def test_loss_and_gradients_are_those_of_the_formula(tiny, head):
    model = tiny.make_model().double()
    model = WithValueHead(model, lively_head(tiny).double()) if head else model
    settings = PolicySettings(entropy=0.02, kl=0.1, value=0.7, value_clip=0.1)
    examples = examples_of(tiny, model)
    expected, weight = plain_loss(tiny, model, examples, settings, 2.5)
    expected.backward()
    wanted = tiny.gradients(model)
    model.zero_grad()
    batch = PolicyBatch.of(examples)
    batch = PolicyBatch(batch.rows, *(part.double() for part in batch[1:]))
    total, weights = PolicyLoss(settings, 2.5)(model, batch)
    total.backward()
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert float(weights) == weight
    assert torch.allclose(tiny.gradients(model), wanted, rtol=1e-4, atol=1e-6)  # batches hold float32
    assert wanted.abs().max() > 1e-3


def test_before_the_first_step_the_gradient_is_reinforces(tiny):
    model = tiny.make_model().double()
    prompt, completion = (5, 6, 7), (8, 9, 2)
    logprobs, _ = tiny.plain_logprobs(model, prompt, completion)
    (-0.7 * logprobs.sum() / 3).backward()
    wanted = tiny.gradients(model)
    model.zero_grad()
    example = PolicyExample(prompt, completion, tuple(logprobs.tolist()), 0.7)
    batch = PolicyBatch.of([example])
    batch = PolicyBatch(batch.rows, *(part.double() for part in batch[1:]))
    PolicyLoss(PolicySettings(), 3.0)(model, batch)[0].backward()
    assert torch.allclose(tiny.gradients(model), wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("ratio", "advantage", "moves"), [(1.3, 1.0, False), (1.3, -1.0, True), (0.7, -1.0, False), (0.7, 1.0, True)]
)
def test_the_clip_holds_what_has_gone_far_enough_and_lets_the_rest_return(ratio, advantage, moves):
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    clipped_policy_loss(logprob, torch.zeros(1), torch.tensor([advantage]), 0.2).sum().backward()
    assert logprob.grad is not None
    assert (float(logprob.grad) != 0) == moves


def test_the_clipped_value_loss_takes_the_worse_error():
    value = torch.tensor([0.9, 0.0], requires_grad=True)
    loss = clipped_value_loss(value, torch.zeros(2), torch.tensor([1.0, 1.0]), 0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.8**2, 0.5])
    loss.sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == pytest.approx([0.0, -1.0])  # the first has moved as far as it may


def test_shapes_that_would_broadcast_are_refused():
    """(n, 1) against (n,) would regress every value to the mean of all returns."""
    with pytest.raises(NLRLError, match="must agree"):
        clipped_value_loss(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3), 0.2)
    with pytest.raises(NLRLError, match="must agree"):
        clipped_policy_loss(torch.zeros(3), torch.zeros(3, 1), torch.zeros(3), 0.2)


def test_the_kl_estimate_is_never_negative_and_right_on_average():
    torch.manual_seed(0)
    policy, reference = torch.randn(8).log_softmax(-1), torch.randn(8).log_softmax(-1)
    tokens = torch.multinomial(policy.exp(), 200_000, replacement=True)
    estimates = kl_to_reference(policy[tokens], reference[tokens])
    exact = float((policy.exp() * (policy - reference)).sum())
    assert float(estimates.min()) >= 0
    assert float(estimates.mean()) == pytest.approx(exact, rel=0.03)


def test_padding_and_company_change_nothing(tiny):
    model, settings = tiny.make_model(), PolicySettings(entropy=0.01)
    examples = examples_of(tiny, model, 5)
    alone = sum(PolicyLoss(settings, 3.0)(model, PolicyBatch.of([e]))[0].item() for e in examples)
    together = PolicyLoss(settings, 3.0)(model, PolicyBatch.of(examples))[0].item()
    assert together == pytest.approx(alone, rel=1e-4)


def test_an_answer_without_its_log_probabilities_is_refused(tiny):
    example = PolicyExample((5,), (6, 2), (-1.0,), 1.0)
    with pytest.raises(NLRLError, match="1 log-probabilities for 2 tokens"):
        fit_policy(tiny.make_model(), [example], PolicySettings(), 1, 4, 0, learning_rate=1e-3)
    with pytest.raises(NLRLError, match="0 examples"):
        fit_policy(tiny.make_model(), [], PolicySettings(), 1, 4, 0, learning_rate=1e-3)
    with pytest.raises(NLRLError, match="no reference"):
        fit_policy(
            tiny.make_model(), [replace(example, logprobs=(0, 0))], PolicySettings(kl=0.1), 1, 4, 0, learning_rate=1e-3
        )


def test_epochs_end_when_the_policy_has_moved_far_enough(tiny):
    def epochs(max_kl):
        model = tiny.make_model()
        examples = [replace(e, logprobs=logprobs_now(tiny, model, e)) for e in examples_of(tiny, model, 32)]
        return fit_policy(model, examples, PolicySettings(max_kl=max_kl), 6, 8, 0, learning_rate=3e-3)

    free, held = epochs(math.inf), epochs(0.002)
    assert (free.epochs, free.steps, free.examples) == (6, 24, 192)
    assert held.epochs < 6
    assert free.kl > held.kl > 0.002
    assert free.drift == pytest.approx(0, abs=1e-5)


def logprobs_now(tiny, model, example):
    with torch.no_grad():
        return tuple(tiny.plain_logprobs(model, example.prompt, example.completion)[0].tolist())


# -- toys --------------------------------------------------------------------------------------------------------------
PRIZE = {5: 20, 6: 9}
"""Prompt -> the token that wins there."""


def play_bandit(tiny, model, count, rng):
    prompts = [(prompt,) for prompt in PRIZE for _ in range(count)]
    drawn = tiny.sample(model, prompts, rng)
    wins = [float(token == PRIZE[prompt]) for (prompt,), (token, _) in zip(prompts, drawn, strict=True)]
    return prompts, drawn, wins


@pytest.mark.parametrize("kl", [0.0, 0.2])
def test_grpo_learns_a_bandit(tiny, kl):
    model, base, rng = tiny.make_model(), tiny.make_model(), torch.Generator().manual_seed(0)
    for round_ in range(8):
        prompts, drawn, wins = play_bandit(tiny, model, 256, rng)
        advantages = group_advantages(wins, prompts, [0] * len(wins))
        examples = [
            PolicyExample(prompt, (token,), (logprob,), advantage)
            for prompt, (token, logprob), advantage in zip(prompts, drawn, advantages, strict=True)
        ]
        if kl:
            known = {e.prompt: tiny.plain_logprobs(base, e.prompt, (0,))[1][0].detach() for e in examples[::256]}
            examples = [replace(e, reference=(float(known[e.prompt][e.completion[0]]),)) for e in examples]
        fit_policy(model, examples, PolicySettings(kl=kl), 2, 128, round_, learning_rate=3e-3)
    won = sum(play_bandit(tiny, model, 256, rng)[2]) / 512
    assert won > 0.9 if not kl else 0.06 < won < 0.9  # the reference holds it back


def play_two_steps(tiny, model, count, rng):
    """Two decisions; the first is right or wrong, and only after the second does the outcome show, +1 or -1."""
    first = tiny.sample(model, [(5, 4)] * count, rng)
    states = [(7 if token % 2 else 8, 4) for token, _ in first]
    second = tiny.sample(model, states, rng)
    outcome = [1.0 if a % 2 and b < tiny.VOCAB // 2 else -1.0 for (a, _), (b, _) in zip(first, second, strict=True)]
    return [((5, 4), s, a, b, r) for s, a, b, r in zip(states, first, second, outcome, strict=True)]


def train_ppo(tiny, rounds=6):
    model, rng = WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH)), torch.Generator().manual_seed(0)
    for round_ in range(rounds):
        episodes = play_two_steps(tiny, model.trunk, 256, rng)
        values = predict(model, [prompt for e in episodes for prompt in e[:2]])
        found = [gae([0.0, e[4]], values[2 * i : 2 * i + 2]) for i, e in enumerate(episodes)]
        roles = [step for _ in episodes for step in ("first", "second")]
        scaled = normalised([a for both in found for a in both], roles)
        examples = []
        for i, (start, state, *moves, _) in enumerate(episodes):
            for step, (prompt, (token, logprob)) in enumerate(zip((start, state), moves, strict=True)):
                k = 2 * i + step
                numbers = {"return_": found[i][step] + values[k], "value": values[k]}
                examples.append(PolicyExample(prompt, (token,), (logprob,), scaled[k], **numbers))
        fit_policy(model, examples, PolicySettings(entropy=0.005), 3, 128, round_, learning_rate=3e-3)
    return model, rng


def test_ppo_learns_two_steps_and_its_head_learns_what_they_are_worth(tiny):
    model, rng = train_ppo(tiny)
    assert sum(e[4] for e in play_two_steps(tiny, model.trunk, 256, rng)) / 256 > 0.8
    good, lost = predict(model, [(7, 4), (8, 4)])
    assert lost < -0.7  # losses are seen
    assert good > lost + 0.8

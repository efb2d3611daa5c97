"""A tiny model and a plain sampler, for tests of losses: the fixture `tiny` has them by name."""

import random
from types import SimpleNamespace

import pytest
import torch

from nlrl.backbones.transformer.configuration import TransformerConfig
from nlrl.backbones.transformer.modeling import TransformerForCausalLM

WIDTH = 32
VOCAB = 32
END = 2


def make_model(seed=0):
    torch.manual_seed(seed)
    config = TransformerConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
    )
    return TransformerForCausalLM(config)


def random_pairs(count, seed=0):
    """Prompts and completions of various lengths."""
    rng = random.Random(seed)

    def draw(low, high):
        return tuple(rng.randrange(4, VOCAB) for _ in range(rng.randrange(low, high)))

    return [(draw(1, 8), (*draw(0, 5), END)) for _ in range(count)]


def plain_logprobs(model, prompt, completion):
    """Log-probabilities of a completion's tokens, `(tokens,)`, and of the vocabulary, one row at a time."""
    ids = torch.tensor([[*prompt, *completion]])
    every = model.logits(model.hidden(ids, torch.arange(ids.shape[1])[None]))[0].log_softmax(-1)
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    chosen = [every[place, token] for place, token in zip(places, completion, strict=True)]
    return torch.stack(chosen), every[list(places)]


@torch.no_grad()
def sample(model, prompts, rng):
    """One token a prompt, and its log-probability. Prompts are of equal length."""
    ids = torch.tensor(prompts)
    every = model.logits(model.hidden(ids, torch.arange(ids.shape[1])[None].expand_as(ids))[:, -1]).log_softmax(-1)
    drawn = torch.multinomial(every.exp(), 1, generator=rng)
    return [(int(token), float(every[i, token])) for i, (token,) in enumerate(drawn)]


def gradients(model):
    return torch.cat([p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()])


@pytest.fixture(scope="session")
def tiny():
    """Whatever is defined above, by name."""
    names = ("WIDTH", "VOCAB", "END", "make_model", "random_pairs", "plain_logprobs", "sample", "gradients")
    return SimpleNamespace(**{name: globals()[name] for name in names})

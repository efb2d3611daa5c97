"""The head regresses what was observed, prompt by prompt, and lies on the hidden state of the prompt's last token."""

import random

import pytest
import torch

from nlrl.backbones.value_head import ValueBatch, ValueExample, ValueHead, WithValueHead, fit_values, predict
from nlrl.errors import NLRLError


def prompts(tiny, count, seed=0):
    rng = random.Random(seed)
    return [tuple(rng.randrange(4, tiny.VOCAB) for _ in range(rng.randrange(2, 9))) for _ in range(count)]


def worth(prompt):
    return 1.0 if prompt[0] > prompt[-1] else -1.0


def test_a_new_head_knows_nothing(tiny):
    assert predict(WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH)), prompts(tiny, 5)) == [0.0] * 5


def test_it_regresses_known_returns(tiny):
    model = WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH))
    examples = [ValueExample(prompt, worth(prompt)) for prompt in prompts(tiny, 1024)]
    first = fit_values(model, examples, 1, 64, 0, learning_rate=3e-3)
    last = fit_values(model, examples, 8, 64, 1, learning_rate=3e-3)
    assert last.loss < 0.3 * first.loss
    new = prompts(tiny, 200, seed=1)
    found = predict(model, new)
    assert sum((value > 0) == (worth(prompt) > 0) for value, prompt in zip(found, new, strict=True)) > 170


def test_different_prompts_keep_different_values(tiny):
    """What (n, 1) against (n,) would make impossible."""
    model = WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH))
    fit_values(model, [ValueExample((5, 6), 1.0), ValueExample((6, 5), -0.5)], 60, 2, 0, learning_rate=3e-3)
    assert predict(model, [(5, 6), (6, 5)]) == pytest.approx([1.0, -0.5], abs=0.1)


def test_a_weight_counts_like_repetition(tiny):
    one = WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH))
    fit_values(one, [ValueExample((5,), 1.0, 3.0), ValueExample((5,), 0.0, 1.0)], 80, 2, 0, learning_rate=3e-3)
    assert predict(one, [(5,)]) == pytest.approx([0.75], abs=0.05)


def test_values_are_read_at_the_prompts_last_token_whatever_follows_or_pads(tiny):
    model = WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH))
    torch.nn.init.normal_(model.head.out.weight)
    rows = prompts(tiny, 6)
    together = predict(model, rows)
    for prompt, value in zip(rows, together, strict=True):
        ids = torch.tensor([prompt])
        hidden = model.trunk.hidden(ids, torch.arange(len(prompt))[None])
        assert model.head(hidden[0, -1]).item() == pytest.approx(value, abs=1e-5)


def test_shapes(tiny):
    model = WithValueHead(tiny.make_model(), ValueHead(tiny.WIDTH))
    batch = ValueBatch.of([ValueExample(prompt, 0.0) for prompt in prompts(tiny, 5)])
    hidden = batch.rows.hidden(model)
    assert hidden.shape == (5, max(map(len, prompts(tiny, 5))), tiny.WIDTH)
    assert model.values(batch.rows, hidden).shape == (5,) == batch.targets.shape
    assert ValueHead(tiny.WIDTH)(torch.zeros(2, 3, tiny.WIDTH)).shape == (2, 3)


def test_values_are_not_rounded_under_autocast():
    head, hidden = ValueHead(8), torch.randn(4, 8)
    torch.nn.init.normal_(head.out.weight)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(hidden.bfloat16()).dtype == torch.float32
        assert torch.equal(head(hidden), head.float()(hidden))


def test_an_empty_prompt_is_refused():
    with pytest.raises(NLRLError, match="empty prompt"):
        ValueBatch.of([ValueExample((), 1.0)])


def test_the_trunk_stays_a_language_model(tiny):
    model = tiny.make_model()
    wrapped = WithValueHead(model, ValueHead(tiny.WIDTH))
    before = model.state_dict().keys()
    fit_values(wrapped, [ValueExample((5, 6), 1.0)], 1, 1, 0, learning_rate=1e-3)
    assert model.state_dict().keys() == before
    assert wrapped.trunk is model

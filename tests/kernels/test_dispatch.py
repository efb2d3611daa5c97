"""Ops are called as functions are: by position or by name."""

import pytest
import torch

from nlrl import kernels


def test_arguments_may_be_named():
    logits, seeds = torch.randn(3, 16), torch.arange(3)
    steps, temperature = torch.zeros(3, dtype=torch.int64), torch.ones(3)
    by_place = kernels.sample(logits, seeds, steps, temperature)
    by_name = kernels.sample(logits=logits, seeds=seeds, steps=steps, temperature=temperature)
    assert all(torch.equal(one, other) for one, other in zip(by_place, by_name, strict=True))


def test_an_unknown_name_is_an_error():
    with pytest.raises(TypeError, match="colour"):
        kernels.swiglu(torch.randn(3, 8), colour=1)

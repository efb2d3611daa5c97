"""How far the largest activations stick out: absolute values of hidden states and of attention logits, as the table of
arXiv 2410.05258 (section 3.6) lists them.

Hidden states are the outputs of the layers. Attention logits are the scaled scores before the softmax, of every map of
every head, at pairs that may attend. They are computed from what the model gives to the attention function, so any
model that calls torch's can be measured.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from nlrl.benchmarks.replications.experiment import Data

TOPS = (1, 2, 3, 10, 100, 1000)
TOKENS = 1 << 15
STRIDE = 997
"""One value in so many goes into the median."""


class Largest:
    """The largest of many absolute values, and about their median."""

    def __init__(self):
        self._top, self._sample = torch.empty(0), []

    def add(self, values: Tensor) -> None:
        values = values.flatten().float().abs()
        top = values.topk(min(max(TOPS), len(values))).values
        self._top = torch.cat((self._top.to(top), top)).topk(min(max(TOPS), len(self._top) + len(top))).values
        self._sample.append(values[::STRIDE])

    def figures(self) -> dict:
        """`top`: the n-th largest by n; `median`."""
        top = self._top.tolist()
        return {
            "top": {str(n): top[n - 1] for n in TOPS if n <= len(top)},
            "median": float(torch.cat(self._sample).median()),
        }


def outliers(model, data: Data, device) -> dict:
    """`hidden` and `scores`, each with `top` and `median`, over held-out text."""
    from nlrl.benchmarks.replications.train import autocast

    hidden, scores = Largest(), Largest()
    with torch.no_grad(), _layer_outputs(model, hidden), _attention_scores(scores):
        for row in data.validation_rows(TOKENS).split(1):
            tokens = row.long()
            with autocast(tokens.device):
                model.hidden(tokens, torch.arange(data.context, device=tokens.device)[None])
    return {"hidden": hidden.figures(), "scores": scores.figures()}


@contextlib.contextmanager
def _layer_outputs(model, found: Largest) -> Iterator[None]:
    hooks = [layer.register_forward_hook(lambda _, __, output: found.add(output)) for layer in model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _attention_scores(found: Largest) -> Iterator[None]:
    """While it lasts, every causal call of torch's attention is looked at."""
    attention = F.scaled_dot_product_attention

    def watched(query: Tensor, key: Tensor, *args, **settings):
        scale = settings.get("scale") or query.shape[-1] ** -0.5
        heads = query.shape[1] // key.shape[1]
        score = (query.float() * scale) @ key.float().repeat_interleave(heads, 1).transpose(-1, -2)
        seen = torch.ones(score.shape[-2:], dtype=torch.bool, device=score.device).tril()
        found.add(score[..., seen])
        return attention(query, key, *args, **settings)

    F.scaled_dot_product_attention = watched
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention

"""Completions behind their prompts as one padded batch, for losses that need more than a cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from nlrl.backbones.padding import padded
from nlrl.errors import NLRLError


class CompletionRows(NamedTuple):
    """Rows of (prompt, completion), padded on the right. A *target* is a token of a completion."""

    tokens: Tensor
    """`(rows, time)` long."""
    positions: Tensor
    """`(rows, time)` long: 0, 1, ...; 0 at padding, which nothing before it sees."""
    rows: Tensor
    """`(targets,)` long: the row of each target."""
    places: Tensor
    """`(targets,)` long: the place that predicts it, one before its own."""
    last: Tensor
    """`(rows,)` long: the place of the prompt's last token."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> CompletionRows:
        """
        Args:
            pairs: prompt and completion, as token ids; a completion may be empty.
        Raises:
            NLRLError: a prompt is empty.
        """
        if any(not len(prompt) for prompt, _ in pairs):
            raise NLRLError("a training example has an empty prompt; it needs a token at least")
        tokens = padded([(*prompt, *completion) for prompt, completion in pairs], "cpu")
        time = torch.arange(tokens.shape[1])
        lengths = torch.tensor([len(prompt) + len(completion) for prompt, completion in pairs])[:, None]
        spans = [range(len(prompt) - 1, len(prompt) + len(completion) - 1) for prompt, completion in pairs]
        return cls(
            tokens,
            time.where(time < lengths, 0),
            torch.tensor([row for row, span in enumerate(spans) for _ in span], dtype=torch.int64),
            torch.tensor(list(chain.from_iterable(spans)), dtype=torch.int64),
            torch.tensor([len(prompt) - 1 for prompt, _ in pairs]),
        )

    def to(self, device) -> CompletionRows:
        return CompletionRows(*(tensor.to(device, non_blocking=True) for tensor in self))

    def hidden(self, model) -> Tensor:
        """Final hidden states, `(rows, time, width)`."""
        return model.hidden(self.tokens, self.positions, None)

    def logprobs(self, model, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The log-probability of each target, `(targets,)`, and those of the whole vocabulary in its place,
        `(targets, vocab)`; float32 at least."""
        logits = model.logits(hidden[self.rows, self.places])
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        every = logits.log_softmax(-1)
        return every.gather(1, self.tokens[self.rows, self.places + 1][:, None])[:, 0], every

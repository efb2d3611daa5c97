"""Log-probabilities of given continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from nlrl.backbones.padding import padded, padded_positions, passes
from nlrl.errors import NLRLError

PASS_TOKENS = {"cpu": 4_096, "cuda": 131_072}


@dataclass(frozen=True, slots=True)
class TokenScore:
    """What a model says of a given token in its place."""

    logprob: float
    likeliest: bool
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, likeliest first."""


def score(
    model, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]], top: int = 0
) -> list[list[TokenScore]]:
    """The score of every token of each continuation, given all before it.

    Args:
        prompts, continuations: token ids; no prompt may be empty.
        top: how many of the likeliest tokens are told at each place.
    """
    if any(not len(prompt) for prompt in prompts):
        raise NLRLError("score: a prompt is empty; it needs a token at least, such as the tokenizer's first")
    rows = [(*prompt, *continuation) for prompt, continuation in zip(prompts, continuations, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out: list[list[TokenScore]] = [[] for _ in rows]
    limit = PASS_TOKENS.get(model.device.type, PASS_TOKENS["cuda"])
    for cut in passes([len(rows[i]) for i in order], limit):
        chosen = order[cut]
        found = _pass(model, [rows[i] for i in chosen], [len(prompts[i]) for i in chosen], top)
        for i, scores in zip(chosen, found, strict=True):
            out[i] = scores
    return out


def _pass(model, rows: list[tuple[int, ...]], prompt_lengths: list[int], top: int) -> list[list[TokenScore]]:
    device = model.device
    ids = padded(rows, device)
    hidden = model.hidden(ids, padded_positions([len(row) for row in rows], device))
    spans = [range(start - 1, len(row) - 1) for row, start in zip(rows, prompt_lengths, strict=True)]
    row_index = torch.tensor([r for r, span in enumerate(spans) for _ in span], dtype=torch.int64).to(device)
    place = torch.tensor([t for span in spans for t in span], dtype=torch.int64).to(device)
    logprobs = model.logits(hidden[row_index, place]).float().log_softmax(-1)
    token = ids[row_index, place + 1]
    best = logprobs.topk(max(top, 1))
    of_token = logprobs.gather(1, token[:, None])[:, 0]
    columns = [of_token, best.indices[:, 0] == token, best.indices[:, :top], best.values[:, :top]]
    scores = [
        TokenScore(value, likeliest, tuple(zip(tokens, values, strict=True)))
        for value, likeliest, tokens, values in zip(*(column.tolist() for column in columns), strict=True)
    ]
    ends = torch.tensor([0, *(len(span) for span in spans)]).cumsum(0).tolist()
    return [scores[start:end] for start, end in pairwise(ends)]


def end_tokens(model, tokenizer) -> frozenset[int]:
    """Tokens that end an answer.

    Raises:
        NLRLError: neither the tokenizer nor the model's config names one.
    """
    ends = {tokenizer.eos_token_id}
    configured = getattr(model.config, "eos_token_id", None)
    ends.update(configured if isinstance(configured, list | tuple) else [configured])
    ends.discard(None)
    if not ends:
        raise NLRLError("neither the tokenizer nor the model's config names an end-of-text token (eos_token_id)")
    return frozenset(ends)

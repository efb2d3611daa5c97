"""Prefill and decoding of one batch of prompts of different lengths.

1. Prompts are padded on the right, at position -1, which leaves no trace in a `DecodeState`.
2. `prefill` reads each distinct prompt once; `start` hands its state to every row that asked for it.
3. `decode_step` feeds each row its last token and draws the next. It works in place on static shapes and asks the host
   nothing: the eager loop below and a CUDA graph (`decode_graphs`) run the same function.
4. Rows start together, so one counter `step` serves all. Finished rows go on drawing tokens nobody reads, until the
   loop drops them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from nlrl.backbones.backbone import Backbone
from nlrl.backbones.decode_state import DecodeState
from nlrl.backbones.sampler import Features, NumberTokens, Settings, choose

Prompt = tuple[int, ...]
Watch = Callable[["Batch"], Iterable[int]]
"""Called now and then with the batch: returns rows (indices into `Batch.rows`) that the host wants finished."""


@dataclass(frozen=True)
class Decoder:
    """What a decoding step needs beside the batch."""

    model: Backbone
    end_tokens: Tensor
    """`(ends,)` int64."""
    numbers: NumberTokens | None


@dataclass
class Answers:
    """What was drawn, by original row."""

    tokens: Tensor
    """`(batch, max_tokens)` int64; what follows an end token is noise."""
    logprobs: Tensor
    """`(batch, max_tokens)` float32, under the model's own distribution at temperature 1."""
    expectation: Tensor
    """`(batch,)` float32, NaN until the row's first number."""

    @classmethod
    def empty(cls, batch: int, max_tokens: int, device) -> Answers:
        return cls(
            torch.zeros(batch, max_tokens, dtype=torch.int64, device=device),
            torch.zeros(batch, max_tokens, device=device),
            torch.full((batch,), torch.nan, device=device),
        )


@dataclass
class Rows:
    """The live part of a batch, one entry a row."""

    settings: Settings
    row: Tensor
    """`(batch,)` int64: the row's place in `Answers`."""
    ids: Tensor
    """`(batch,)` int64: the token to be fed next."""
    positions: Tensor
    """`(batch,)` int64: its position."""
    finished: Tensor
    """`(batch,)` bool."""
    step: Tensor
    """`()` int64: tokens drawn so far."""

    def __len__(self) -> int:
        return self.row.shape[0]

    def select(self, keep: Tensor) -> Rows:
        """A copy with the given rows only."""
        settings = Settings(*(getattr(self.settings, f.name)[keep] for f in fields(Settings)))
        return replace(
            self,
            settings=settings,
            row=self.row[keep],
            ids=self.ids[keep],
            positions=self.positions[keep],
            finished=self.finished[keep],
        )


@dataclass
class Batch:
    """A batch between prefill and its last token."""

    rows: Rows
    answers: Answers
    state: DecodeState
    features: Features
    max_tokens: int
    """The largest limit of any row."""


def passes(lengths: Sequence[int], tokens: int) -> list[slice]:
    """Cuts consecutive rows of the given lengths into runs of at most `tokens` padded tokens (one row at least)."""
    cuts, start, longest = [], 0, 0
    for i, length in enumerate(lengths):
        longest = max(longest, length)
        if i > start and (i + 1 - start) * longest > tokens:
            cuts.append(slice(start, i))
            start, longest = i, length
    return [*cuts, slice(start, len(lengths))] if lengths else []


def padded(rows: Sequence[Sequence[int]], device) -> Tensor:
    """Right-padded with 0: int64 `(rows, longest)`."""
    lengths = np.array([len(row) for row in rows])
    ids = np.zeros((len(rows), lengths.max()), np.int64)
    ids[np.arange(lengths.max()) < lengths[:, None]] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
    return torch.from_numpy(ids).to(device)


def padded_positions(lengths: Sequence[int], device) -> Tensor:
    """0, 1, ... in each row of the given length, -1 behind it: int64 `(rows, longest)`."""
    ends = torch.tensor(lengths)[:, None]
    places = torch.arange(int(ends.max()))
    return places.where(places < ends, -1).to(device)


def prefill(model: Backbone, prompts: Sequence[Prompt], state: DecodeState, pass_tokens: int) -> Tensor:
    """Reads the prompts into `state`; returns the logits after each, float32 `(prompts, vocab)`."""
    device = state.device
    last = []
    for rows in passes([len(p) for p in prompts], pass_tokens):
        ids = padded(prompts[rows], device)
        positions = padded_positions([len(p) for p in prompts[rows]], device)
        hidden = model.hidden(ids, positions, state=state.view(rows, ids.shape[1]))
        last.append(hidden[torch.arange(len(ids), device=device), positions.argmax(1)])
    return model.logits(torch.cat(last)).float()


def start(
    decoder: Decoder,
    prompts: Sequence[Prompt],
    samplings: Sequence,
    seeds: Sequence[int],
    length: int | None,
    pass_tokens: int,
) -> Batch:
    """Prefills the distinct prompts, hands them to their rows and draws every row's first token.

    Args:
        prompts, samplings, seeds: one each per row.
        length: room of the state; None for the longest prompt only (the caller copies it into a longer one).
    """
    device = decoder.end_tokens.device
    distinct = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    state = decoder.model.new_state(len(distinct), length or max(map(len, distinct)))
    logits = prefill(decoder.model, list(distinct), state, pass_tokens)
    if len(distinct) < len(prompts):
        fan_out = torch.tensor([distinct[prompt] for prompt in prompts]).to(device)
        state, logits = state.select(fan_out), logits[fan_out]
    max_tokens = max(s.max_tokens for s in samplings)
    rows = Rows(
        settings=Settings.of(samplings, seeds, device),
        row=torch.arange(len(prompts), device=device),
        ids=torch.zeros(len(prompts), dtype=torch.int64, device=device),
        positions=torch.tensor([len(prompt) for prompt in prompts]).to(device),
        finished=torch.zeros(len(prompts), dtype=torch.bool, device=device),
        step=torch.zeros((), dtype=torch.int64, device=device),
    )
    batch = Batch(rows, Answers.empty(len(prompts), max_tokens, device), state, Features.of(samplings), max_tokens)
    emit(decoder, batch, logits)
    return batch


def emit(decoder: Decoder, batch: Batch, logits: Tensor) -> None:
    """Draws every row's next token from float32 logits `(batch, vocab)` and notes it."""
    rows, answers = batch.rows, batch.answers
    token = choose(logits, rows.settings, rows.step, batch.features)
    if batch.features.numbers and decoder.numbers is not None:
        token = read_number(decoder.numbers, rows, answers, logits, token)
    where = (rows.row, rows.step.expand(len(rows)))
    answers.tokens.index_put_(where, token)
    answers.logprobs.index_put_(where, logits.gather(1, token[:, None])[:, 0] - logits.logsumexp(-1))
    rows.step.add_(1)
    rows.finished.logical_or_((token[:, None] == decoder.end_tokens).any(-1)).logical_or_(
        rows.step >= rows.settings.limit
    )
    rows.ids.copy_(token)


def read_number(numbers: NumberTokens, rows: Rows, answers: Answers, logits: Tensor, token: Tensor) -> Tensor:
    """Replaces the first number that a row would write by its expectation; all `(batch,)` but logits."""
    noted = answers.expectation[rows.row]
    first = rows.settings.wants_number & numbers.is_number[token] & noted.isnan() & ~rows.finished
    expectation = numbers.expectation(logits)
    answers.expectation.index_put_((rows.row,), torch.where(first, expectation, noted))
    return torch.where(first, numbers.nearest(expectation, token), token)


def decode_step(decoder: Decoder, batch: Batch, state: DecodeState) -> None:
    """Feeds every row its last token and draws the next. state: `batch.state` or a view of its live slots."""
    rows = batch.rows
    hidden = decoder.model.hidden(rows.ids[:, None], rows.positions[:, None], state=state)
    rows.positions.add_(~rows.finished)
    emit(decoder, batch, decoder.model.logits(hidden)[:, 0].float())


def decode(decoder: Decoder, batch: Batch, watch: Watch | None, check_every: int) -> None:
    """Draws tokens until every row is finished, eagerly. Finished rows are dropped once they are half of the batch."""
    for step in range(1, batch.max_tokens):
        if step % check_every == 0 or step == 1:
            live = retire(batch, watch)
            if live == 0:
                return
        longest = int(batch.rows.positions.max()) + 1 if batch.state.device.type == "cpu" else batch.state.length
        decode_step(decoder, batch, batch.state.view(slice(None), longest))


def retire(batch: Batch, watch: Watch | None) -> int:
    """Finishes what the host wants finished, drops finished rows if that halves the batch; returns how many live."""
    finish(batch, watch)
    keep = (~batch.rows.finished).nonzero()[:, 0]
    if 0 < 2 * len(keep) <= len(batch.rows):
        batch.rows, batch.state = batch.rows.select(keep), batch.state.select(keep)
    return len(keep)


def finish(batch: Batch, watch: Watch | None) -> None:
    """Marks the rows that `watch` names."""
    rows = list(watch(batch)) if watch is not None else []
    if rows:
        batch.rows.finished[torch.tensor(rows, device=batch.rows.finished.device)] = True

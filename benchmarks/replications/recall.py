"""A recall task: what a model reads once and is asked for later (multi-query associative recall, arXiv 2312.04927).

1. An episode is n pairs of a key and a value, filler, and the n keys again, in another order, each followed by its
   value. Keys, values and filler are separate parts of the vocabulary, among the frequent tokens; the keys of an
   episode differ, the next episode may give them other values.
2. The values behind the asked keys are the targets. Nothing but the pairs tells them: a guess among all values is right
   once in `VALUES`, a guess among the values of the episode about once in n.
3. A training row is episodes behind each other, of all sizes that fit; a probe is one episode of a given size. The
   distance of a target is how many tokens lie between it and the same value in its pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from nlrl.benchmarks.replications.experiment import Data
from nlrl.errors import NLRLError

PAIRS = (2, 4, 8, 16)
"""Pairs of a training episode."""
LONG_GAPS = 1 / 16
"""Share of the training episodes that have a gap, of any length that fits."""
KEYS, VALUES, MOST_FILLERS = 32, 16, 256
TARGET_WEIGHT = 4.0
"""Of a target of a training row; a token of text has 1."""
PROBE_PAIRS = (4, 8, 16)
PROBE_GAPS = (0.0, 0.25, 0.5)
"""Filler between pairs and questions, in contexts."""
PROBE_TARGETS = 512
"""Of every kind of probe."""
PROBE_SEED = 20_240


class Rows(NamedTuple):
    """Each array is `(rows, time)`."""

    tokens: np.ndarray
    """int32."""
    targets: np.ndarray
    """bool."""
    distance: np.ndarray
    """int32: at targets, tokens back to the value in its pair; elsewhere 0."""


class Symbols(NamedTuple):
    """Token ids, int32."""

    keys: np.ndarray
    values: np.ndarray
    fillers: np.ndarray

    @classmethod
    def of(cls, vocab: int) -> Symbols:
        """Tokens behind control tokens and bytes, where a trained vocabulary has its most frequent ones.

        Raises:
            NLRLError: the vocabulary has too few tokens.
        """
        first = vocab // 8
        starts = (first, first + KEYS, first + KEYS + VALUES, min(vocab, first + KEYS + VALUES + MOST_FILLERS))
        if starts[2] >= vocab:
            raise NLRLError(f"a vocabulary of {vocab} tokens has no {KEYS} keys, {VALUES} values and filler")
        return cls(*(np.arange(start, end, dtype=np.int32) for start, end in pairwise(starts)))


def mix(data: Data, rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Training rows; see `experiment.Mix`."""
    made = training_rows(rng, rows, data.context, data.vocab)
    return made.tokens, made.targets * np.float32(TARGET_WEIGHT)


def training_rows(rng: np.random.Generator, rows: int, context: int, vocab: int) -> Rows:
    """Rows of `context` tokens, full of episodes. All sizes take as many tokens, so small ones are frequent."""
    symbols = Symbols.of(vocab)
    return _stacked(_training_row(rng, context, symbols) for _ in range(rows))


def probe_rows(rng: np.random.Generator, rows: int, vocab: int, pairs: int, gap: int) -> Rows:
    """Rows of one episode, `4 * pairs + gap` tokens long."""
    symbols = Symbols.of(vocab)
    return _stacked(_episode(rng, symbols, pairs, gap) for _ in range(rows))


def _training_row(rng: np.random.Generator, context: int, symbols: Symbols) -> Rows:
    parts, room = [], context
    while fitting := [n for n in PAIRS if 4 * n <= room]:
        odds = 1 / np.array(fitting)
        n = int(rng.choice(fitting, p=odds / odds.sum()))
        gap = int(rng.integers(room - 4 * n + 1)) if rng.random() < LONG_GAPS else 0
        parts.append(_episode(rng, symbols, n, gap))
        room -= 4 * n + gap
    parts.append(Rows(rng.choice(symbols.fillers, room), np.zeros(room, bool), np.zeros(room, np.int32)))
    return Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _episode(rng: np.random.Generator, symbols: Symbols, n: int, gap: int) -> Rows:
    """One episode of n pairs; arrays are `(4 * n + gap,)`."""
    pairs = np.stack((rng.permutation(symbols.keys)[:n], rng.choice(symbols.values, n)), 1)
    order = rng.permutation(n)
    tokens = np.concatenate((pairs.ravel(), rng.choice(symbols.fillers, gap), pairs[order].ravel()))
    places = 2 * n + gap + 2 * np.arange(n) + 1
    targets, distance = np.zeros(len(tokens), bool), np.zeros(len(tokens), np.int32)
    targets[places], distance[places] = True, places - (2 * order + 1)
    return Rows(tokens, targets, distance)


def _stacked(rows: Iterable[Rows]) -> Rows:
    return Rows(*(np.stack(arrays) for arrays in zip(*rows, strict=True)))


# -- measuring ---------------------------------------------------------------------------------------------------------
class Probe(NamedTuple):
    """What a model answered to one kind of episode; arrays are `(targets,)`."""

    pairs: int
    gap: int
    right: np.ndarray
    distance: np.ndarray


def kinds(context: int) -> list[tuple[int, int]]:
    """Pairs and gap of the probes that fit into a context."""
    cells = [(pairs, round(share * context)) for pairs in PROBE_PAIRS for share in PROBE_GAPS]
    return [(pairs, gap) for pairs, gap in cells if 4 * pairs + gap <= context]


def recall(model, data: Data, device) -> dict:
    """Share of the targets that are the model's first choice among all tokens: `all`, in which every kind of probe
    counts the same; `by_pairs`; `by_distance`, whose keys are upper ends; and `cells`, each a kind. The same probes for
    every model."""
    rng, found = np.random.default_rng(PROBE_SEED), []
    for pairs, gap in kinds(data.context):
        rows = probe_rows(rng, max(1, PROBE_TARGETS // pairs), data.vocab, pairs, gap)
        found.append(Probe(pairs, gap, answered(model, rows, device), rows.distance[rows.targets]))
    cells = [{"pairs": p.pairs, "gap": p.gap, "targets": len(p.right), "accuracy": _mean(p.right)} for p in found]
    sizes = sorted({probe.pairs for probe in found})
    by_pairs = {str(n): _mean([c["accuracy"] for c in cells if c["pairs"] == n]) for n in sizes}
    all_ = _mean([cell["accuracy"] for cell in cells])
    return {"all": all_, "by_pairs": by_pairs, "by_distance": _by_distance(found), "cells": cells}


def answered(model, rows: Rows, device) -> np.ndarray:
    """Whether the model's first choice is right, bool `(targets,)` in the order of rows and places."""
    import torch

    from nlrl.benchmarks.replications.train import autocast

    tokens = torch.from_numpy(rows.tokens).long().to(device)
    positions = torch.arange(tokens.shape[1], device=device).expand(tokens.shape)
    asking = torch.from_numpy(rows.targets[:, 1:]).to(device)
    with torch.no_grad(), autocast(tokens.device):
        choices = model.logits(model.hidden(tokens, positions)[:, :-1][asking]).argmax(-1)
    return (choices == tokens[:, 1:][asking]).cpu().numpy()


def _by_distance(found: Sequence[Probe]) -> dict[str, float]:
    right, distance = (np.concatenate([getattr(probe, name) for probe in found]) for name in ("right", "distance"))
    ends = 2 ** np.ceil(np.log2(distance)).astype(int)
    return {str(end): _mean(right[ends == end]) for end in sorted(set(ends.tolist()))}


def _mean(values) -> float:
    return float(np.mean(values))

"""Training examples, and how many short ones share a row.

A row of fixed length holds several documents behind each other. Positions restart in each, attention stays within each
(`block_mask`), and only tokens of completions are targets, so the packed loss is the sum of the documents' own losses
(tested).
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nlrl.errors import NLRLError


@dataclass(frozen=True, slots=True)
class TokenExample:
    """A prompt and the completion to be learned, which includes its end token."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    weight: float = 1.0

    def __len__(self) -> int:
        return len(self.prompt) + len(self.completion)


@dataclass
class PackedRows:
    """Rows of documents, each array `(rows, row_length)`."""

    tokens: np.ndarray
    """int32, 0 behind the last document."""
    documents: np.ndarray
    """int32: 1, 2, ... within each row; 0 is padding."""
    positions: np.ndarray
    """int32, from 0 in each document."""
    weights: np.ndarray
    """float32: weight of this token *as a target*; 0 for prompts, padding and the first token of a document."""
    examples: int
    """Documents placed."""
    leftover: list[TokenExample]
    """Examples that found no room in the given number of rows."""

    @property
    def fill(self) -> float:
        """Share of the token places that hold documents."""
        return float((self.documents > 0).mean()) if self.documents.size else 0.0


def pack(examples: Sequence[TokenExample], row_length: int, rows: int | None = None) -> PackedRows:
    """Places examples into rows, longest first, each into the fullest row that still has room (best-fit decreasing).

    Args:
        rows: how many rows to make; examples without room come back in `leftover`. None: as many as it takes.
    Raises:
        NLRLError: an example is longer than a row, or empty.
    """
    placed, leftover = _assign(examples, row_length, rows)
    return _filled(placed, len(placed) if rows is None else rows, row_length, leftover)


def rows_needed(examples: Sequence[TokenExample], row_length: int) -> int:
    """How many rows `pack` would make of them."""
    return len(_assign(examples, row_length, None)[0])


def _assign(examples: Sequence[TokenExample], row_length: int, rows: int | None):
    placed: list[list[TokenExample]] = []
    leftover: list[TokenExample] = []
    room: list[tuple[int, int]] = []  # (free places, row), sorted
    for example in sorted(examples, key=len, reverse=True):
        length = _checked_length(example, row_length)
        fit = bisect.bisect_left(room, (length, 0))
        if fit < len(room):
            free, row = room.pop(fit)
        elif rows is None or len(placed) < rows:
            free, row = row_length, len(placed)
            placed.append([])
        else:
            leftover.append(example)
            continue
        placed[row].append(example)
        bisect.insort(room, (free - length, row))
    return placed, leftover


def _checked_length(example: TokenExample, row_length: int) -> int:
    length = len(example)
    if not 0 < length <= row_length:
        raise NLRLError(f"a training example has {length} tokens; it must have 1 to {row_length} (the row length)")
    return length


def _filled(placed: list[list[TokenExample]], rows: int, row_length: int, leftover: list[TokenExample]) -> PackedRows:
    shape = (rows, row_length)
    packed = PackedRows(
        tokens=np.zeros(shape, np.int32),
        documents=np.zeros(shape, np.int32),
        positions=np.zeros(shape, np.int32),
        weights=np.zeros(shape, np.float32),
        examples=sum(map(len, placed)),
        leftover=leftover,
    )
    for row, documents in enumerate(placed):
        _fill_row(packed, row, documents)
    return packed


def _fill_row(packed: PackedRows, row: int, documents: list[TokenExample]) -> None:
    start = 0
    for number, example in enumerate(documents, 1):
        answer, end = start + len(example.prompt), start + len(example)
        packed.tokens[row, start:answer] = example.prompt
        packed.tokens[row, answer:end] = example.completion
        packed.documents[row, start:end] = number
        packed.positions[row, start:end] = np.arange(end - start)
        packed.weights[row, max(answer, start + 1) : end] = example.weight
        start = end


def pad_rows(examples: Sequence[TokenExample], row_length: int | None = None) -> PackedRows:
    """One example a row, in order, padded on the right to the longest (or to `row_length`)."""
    length = row_length or max(map(len, examples))
    for example in examples:
        _checked_length(example, length)
    return _filled([[example] for example in examples], len(examples), length, [])


class TokenBatch(NamedTuple):
    """`PackedRows` as tensors `(rows, row_length)`, of any integer and float type."""

    tokens: Tensor
    documents: Tensor
    positions: Tensor
    weights: Tensor

    @classmethod
    def of(cls, packed: PackedRows) -> TokenBatch:
        return cls(*map(torch.from_numpy, (packed.tokens, packed.documents, packed.positions, packed.weights)))

    def small(self) -> TokenBatch:
        """In 16 bits each, to travel between processes (row lengths and vocabularies here are below 32,768)."""
        return TokenBatch(self.tokens.short(), self.documents.short(), self.positions.short(), self.weights.half())

    def pinned(self) -> TokenBatch:
        """In page-locked memory, so that copies to a CUDA device do not wait for it."""
        return TokenBatch(*(tensor.pin_memory() for tensor in self))

    def to(self, device) -> TokenBatch:
        return TokenBatch(*(tensor.to(device, non_blocking=True) for tensor in self))


def block_mask(documents: Tensor) -> Tensor:
    """Who may attend to whom: causal, and within one document.

    Args:
        documents: `(rows, time)` document numbers; padding is a document too, so that no softmax is over nothing.
    Returns: bool `(rows, 1, time, time)`, on the same device.
    """
    time = documents.shape[1]
    causal = torch.ones(time, time, dtype=torch.bool, device=documents.device).tril_()
    return ((documents[:, :, None] == documents[:, None, :]) & causal)[:, None]


def shuffled_batches(examples: Sequence[TokenExample], batch_size: int, key: str) -> list[list[TokenExample]]:
    """All examples once, in an order drawn from `key`, in batches of `batch_size` at most and of nearly equal size."""
    order = list(range(len(examples)))
    random.Random(key).shuffle(order)
    count = -(-len(order) // batch_size)
    return [[examples[i] for i in order[part::count]] for part in range(count)]

"""Each row's place in its answer and its settings, as tensors of fixed size: what a decoding step reads and writes.

Indexing them with a slice gives views, so a step over the first n rows can be captured in a CUDA graph.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence as Many

import numpy as np
import torch
from torch import Tensor

from nlrl.backbones.engine.transfer import upload
from nlrl.backbones.sampler import signed_seed

INTEGERS = ("ids", "positions", "steps", "seeds", "top_k", "limit")
NUMBERS = ("temperature", "top_p", "min_p", "expectation")
FLAGS = ("finished", "wants_number", "ignores_end")
COLUMNS = ((INTEGERS, torch.int64), (NUMBERS, torch.float32), (FLAGS, torch.bool))


class Rows:
    """Columns of `rows` entries each; a row without a sequence is finished.

    int64: ids (the token to be fed next), positions (its position), steps (tokens drawn), seeds, top_k, limit (tokens
    to draw). float32: temperature, top_p, min_p, expectation (NaN until the first number). bool: finished,
    wants_number, ignores_end.
    """

    ids: Tensor
    positions: Tensor
    steps: Tensor
    seeds: Tensor
    top_k: Tensor
    limit: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    expectation: Tensor
    finished: Tensor
    wants_number: Tensor
    ignores_end: Tensor

    def __init__(self, rows: int, burst: int, vocabulary: int, device: torch.device):
        self._all = {}
        for names, dtype in COLUMNS:
            block = torch.zeros(len(names), rows, dtype=dtype, device=device)
            self._all[dtype] = block
            for name, column in zip(names, block, strict=True):
                setattr(self, name, column)
        self.finished.fill_(True)
        self.tokens = torch.zeros(rows, burst, dtype=torch.int64, device=device)
        """What the steps of one burst drew; behind a row's end it is noise."""
        self.logprobs = torch.zeros(rows, burst, device=device)
        self.column = torch.zeros((), dtype=torch.int64, device=device)
        """Which step of the burst this is."""
        self.allowed = torch.full((rows, -(-vocabulary // 32)), -1, dtype=torch.int32, device=device)
        """Bit mask of the tokens that constraints allow."""

    def blocks(self) -> list[Tensor]:
        """All memory, bit masks aside."""
        return [*self._all.values(), self.tokens, self.logprobs, self.column]

    def at(self, where: slice | Tensor) -> Rows:
        """Some of the rows: views for a slice, copies for indices (`put` brings them back)."""
        part = copy.copy(self)
        part._all = {dtype: block[:, where] for dtype, block in self._all.items()}
        for names, dtype in COLUMNS:
            part.__dict__.update(zip(names, part._all[dtype], strict=True))
        part.tokens, part.logprobs, part.allowed = self.tokens[where], self.logprobs[where], self.allowed[where]
        return part

    def put(self, where: slice | Tensor, part: Rows) -> None:
        """Brings back what `at` gave out, allowed tokens aside."""
        if isinstance(where, slice):
            return
        for dtype, block in self._all.items():
            block[:, where] = part._all[dtype]
        self.tokens[where], self.logprobs[where] = part.tokens, part.logprobs

    def set(self, rows: Many[int], sequences: Many) -> None:
        """Settings for sequences that are about to draw; `ids` and `finished` follow from their first token."""
        device = self.ids.device
        integers = np.array(
            [
                (0, len(s.tokens), len(s.drawn), signed_seed(s.seed), s.sampling.top_k, s.sampling.max_tokens)
                for s in sequences
            ],
            np.int64,
        )
        numbers = np.array(
            [(s.sampling.temperature, s.sampling.top_p, s.sampling.min_p, s.expectation) for s in sequences], np.float32
        )
        flags = np.array([(False, s.sampling.expected_number, s.sampling.ignore_end) for s in sequences], np.bool_)
        where = upload(rows, device)
        for values in (integers, numbers, flags):
            source = upload(values.T, device)
            self._all[source.dtype].index_copy_(1, where, source)

    def move(self, old: Many[int], new: Many[int]) -> None:
        """Copies rows to other rows; the old ones are finished."""
        source, target = (upload(side, self.ids.device) for side in (old, new))
        for block in self._all.values():
            block.index_copy_(1, target, block.index_select(1, source))
        self.allowed.index_copy_(0, target, self.allowed.index_select(0, source))
        self.finished.index_fill_(0, source, True)

    def stop(self, rows: Many[int]) -> None:
        """Marks rows as finished."""
        if rows:
            self.finished.index_fill_(0, upload(rows, self.ids.device), True)
